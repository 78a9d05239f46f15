"""Training: what is labelled of a pool, what networks are shown of it, how they are fitted to it and measured.

labelled.py       frames and windows with labels, and what labelling them took
config.py         which network, and how it is trained
learner.py        a kind of network: its inputs, and how it is made, trained and saved
head.py           the head of a frozen encoder
whole_network.py  every weight of a network
metrics.py        Dice and IoU, exact however a test set is cut
errors.py         why a network cannot be trained
"""
