#include "base/thread_pool.h"

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <new>

namespace selm {
namespace {

constexpr std::chrono::microseconds kSpin(40);
// A wait for others is a hold-up from here on, if it is also twice what the caller itself worked:
// pieces are of about one size.
constexpr std::chrono::microseconds kHoldUp(400);
constexpr std::chrono::milliseconds kAloneFirst(4), kAloneMost(128);
constexpr size_t kStackBytes = size_t{512} << 10;

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Spins until ready() or until the time is up; says whether ready() came true.
template <class Ready>
bool spin_until(Ready ready) {
  constexpr int kPausesPerLook = 32;  // reading the clock costs about as much as one pause
  const auto limit = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (ready()) return true;
      pause_briefly();
    }
  } while (std::chrono::steady_clock::now() < limit);
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(unsigned n_threads) {
  if (n_threads <= 1) return;
  workers_.reset(new (std::nothrow) Worker[n_threads - 1]);
  if (workers_ == nullptr) return;
  // The host's signals are for the host's threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  // Kernels keep tiles of some 100 KB on the stack; some systems give threads no more than that.
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  for (unsigned i = 0; i + 1 < n_threads; ++i) {
    workers_[i].pool = this;
    workers_[i].index = i + 1;  // 0 is the caller
    if (pthread_create(&workers_[i].thread, &attributes, worker_main, &workers_[i]) != 0) break;
    ++n_workers_;
  }
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (unsigned i = 0; i < n_workers_; ++i) pthread_join(workers_[i].thread, nullptr);
}

void ThreadPool::run_pieces(size_t n_pieces, Function function, void* context) {
  const Clock::time_point began = n_workers_ == 0 ? Clock::time_point{} : Clock::now();
  if (n_workers_ == 0 || n_pieces <= 1 || n_pieces > UINT32_MAX || began < alone_until_) {
    for (size_t i = 0; i < n_pieces; ++i) function(context, i, 0);
    return;
  }
  // Close the ticket, write the job, open it under the next number. A worker that reads any of the
  // new job (acquire) also sees the ticket closed, so its claim on the old number fails.
  const uint64_t number = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(number << 32, std::memory_order_relaxed);
  function_.store(function, std::memory_order_release);
  context_.store(context, std::memory_order_release);
  n_pieces_.store(static_cast<uint32_t>(n_pieces), std::memory_order_release);
  done_.store(0, std::memory_order_relaxed);
  ticket_.store((number + 1) << 32, std::memory_order_release);

  wake_.fetch_add(1);
  if (n_sleepers_.load() != 0) wake_.notify_all();
  done_.fetch_add(work(0));
  if (done_.load(std::memory_order_acquire) == n_pieces) return;
  const Clock::time_point worked = Clock::now();
  wait_until_done(static_cast<uint32_t>(n_pieces));
  note_wait(began, worked, Clock::now());
}

void ThreadPool::note_wait(Clock::time_point began, Clock::time_point worked, Clock::time_point done) {
  if (done - worked < kHoldUp || done - worked < 2 * (worked - began)) return;
  const bool again = began - alone_until_ < kAloneMost;
  alone_for_ = again ? std::min<Clock::duration>(2 * alone_for_, kAloneMost) : kAloneFirst;
  alone_until_ = done + alone_for_;
}

// Claims and does pieces until none is left; how many it did.
uint32_t ThreadPool::work(unsigned thread) {
  uint32_t n_done = 0;
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    if (((ticket >> 32) & 1) != 0) return n_done;
    const Function function = function_.load(std::memory_order_acquire);
    void* const context = context_.load(std::memory_order_acquire);
    const uint32_t n_pieces = n_pieces_.load(std::memory_order_acquire);
    const uint32_t index = static_cast<uint32_t>(ticket);
    if (index >= n_pieces) return n_done;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
      continue;
    }
    function(context, index, thread);
    ++n_done;
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::wait_until_done(uint32_t n_pieces) {
  if (spin_until([&] { return done_.load(std::memory_order_acquire) == n_pieces; })) return;
  caller_sleeps_.store(true);
  for (uint32_t done = done_.load(); done != n_pieces; done = done_.load()) done_.wait(done);
  caller_sleeps_.store(false);
}

void ThreadPool::serve(unsigned thread) {
  // From 0, not from wake_'s value now: a run may have begun before this thread did.
  for (uint32_t seen = 0; !stop_.load();) {
    if (const uint32_t n_done = work(thread); n_done != 0) {
      done_.fetch_add(n_done);
      if (caller_sleeps_.load()) done_.notify_one();
    }
    seen = wait_for_wake(seen);
  }
}

// Until wake_ differs from `seen`; its new value.
uint32_t ThreadPool::wait_for_wake(uint32_t seen) {
  if (!spin_until([&] { return wake_.load(std::memory_order_acquire) != seen; })) {
    // Whoever changes wake_ looks at n_sleepers_ after it, and we look at wake_ (inside wait) after
    // n_sleepers_, all sequentially consistent: one of the two sees the other.
    n_sleepers_.fetch_add(1);
    wake_.wait(seen);
    n_sleepers_.fetch_sub(1);
  }
  return wake_.load();
}

void* ThreadPool::worker_main(void* worker) {
  const Worker& self = *static_cast<const Worker*>(worker);
  self.pool->serve(self.index);
  return nullptr;
}

}  // namespace selm
