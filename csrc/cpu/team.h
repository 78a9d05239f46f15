// Tasks shared out among threads, none of which is waited for before it has begun.
//
// An OpenMP loop ends when all its threads have come to its end, and libgomp's wait by spinning for milliseconds. On a machine
// that does other things too, a thread is often not on a core: two threads then took four times the processor time of one,
// and longer. Here a helper takes part if and when it wakes; the caller does what nobody else has begun, and sleeps until what
// was begun is done.
#pragma once

#include <cstdint>
#include <functional>

namespace alges {

// Calls body(task, worker) for every task below `tasks`, on at most `threads` threads; workers have numbers below `threads`,
// the caller 0. Where another thread of the process is in here, the caller does all.
void share_out(int64_t tasks, int threads, const std::function<void(int64_t task, int worker)>& body);

}  // namespace alges
