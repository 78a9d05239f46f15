#include "cpu/team.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace alges {
namespace {

struct Job {
  const int64_t tasks;
  const int helpers;  // at most
  const std::function<void(int64_t, int)>& body;
  std::atomic<int64_t> next{0};
  int joined = 0, active = 0;  // under the team's mutex

  void work(int worker) {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) body(task, worker);
  }
};

class Team {
 public:
  void run(int64_t tasks, int threads, const std::function<void(int64_t, int)>& body) {
    Job job{tasks, threads - 1, body};
    bool led = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!job_ && job.helpers > 0) {
        hire(job.helpers);
        job_ = &job;
        led = true;
      }
    }
    if (led) wake_.notify_all();
    job.work(0);
    if (!led) return;
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // who has not joined comes too late
    done_.wait(lock, [&] { return job.active == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int helpers_ = 0;

  void hire(int helpers) {
    try {
      for (; helpers_ < helpers; ++helpers_) std::thread([this] { help(); }).detach();
    } catch (const std::system_error&) {
      // No more threads are to be had: those there are will do.
    }
  }

  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ && job_->joined < job_->helpers; });
      Job& job = *job_;
      const int worker = ++job.joined;
      ++job.active;
      lock.unlock();
      job.work(worker);
      lock.lock();
      if (--job.active == 0) done_.notify_all();
    }
  }
};

}  // namespace

void share_out(int64_t tasks, int threads, const std::function<void(int64_t, int)>& body) {
  // Never destroyed: its threads sleep on it until the process ends. A forked child has none of them, and does all itself.
  static Team& team = *new Team;
  team.run(tasks, threads, body);
}

}  // namespace alges
