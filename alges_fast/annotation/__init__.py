"""From a trained model and a pool of frames to the next ones to annotate, and what annotation tools need of them."""
