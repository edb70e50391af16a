// Threads that share one piece of work after another. Owned by whoever makes it; no globals.
//
// A run is cut into pieces that threads claim one by one, so a thread that the system delays takes
// fewer of them, and a run ends when its pieces are done, not when every thread has been heard: a
// worker that sleeps through a run costs nothing. The caller works too, and could do it all alone.
//
// A worker that is taken off its core in the middle of a piece holds up the run, for a time slice of
// the system; where other processes want the cores, that happens again and again. So after such a
// wait the caller works alone for a while, longer each time that it repeats.
//
// Between runs workers spin for some tens of microseconds (a forward pass starts its next product
// within that time, and a futex wake costs several) and then sleep, so an idle pool takes no power.
// More threads than cores would spin on each other's time: size a pool by usable_cores().
#pragma once

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace selm {

class ThreadPool {
 public:
  // n_threads counts the caller: n - 1 workers are started (0 is taken as 1). Where the system
  // refuses to start one, the pool is smaller: size() tells.
  explicit ThreadPool(unsigned n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  unsigned size() const { return n_workers_ + 1; }

  // Calls piece(index) or piece(index, thread) for every index below n_pieces, in any order, and
  // returns when all are done; what pieces wrote is then visible. thread < size(), and no two calls
  // run at once with the same one. No allocation. One run at a time: never from two threads, nor
  // from inside a piece.
  template <class F>
  void run(size_t n_pieces, F&& piece) {
    using Piece = std::remove_reference_t<F>;
    run_pieces(
        n_pieces,
        [](void* context, size_t index, unsigned thread) {
          Piece& call = *static_cast<Piece*>(context);
          if constexpr (std::is_invocable_v<Piece&, size_t, unsigned>) {
            call(index, thread);
          } else {
            call(index);
          }
        },
        const_cast<void*>(static_cast<const void*>(std::addressof(piece))));
  }

 private:
  using Function = void (*)(void* context, size_t index, unsigned thread);
  struct Worker {
    ThreadPool* pool;
    unsigned index;
    pthread_t thread;
  };

  void run_pieces(size_t n_pieces, Function function, void* context);
  using Clock = std::chrono::steady_clock;
  uint32_t work(unsigned thread);
  void note_wait(Clock::time_point began, Clock::time_point worked, Clock::time_point done);
  void wait_until_done(uint32_t n_pieces);
  void serve(unsigned thread);
  uint32_t wait_for_wake(uint32_t seen);
  static void* worker_main(void* worker);

  // The next piece to claim in the low half, the number of the run in the high half. While the
  // number is odd the job below is being written. A claim is one compare-exchange of both halves,
  // so a worker that was delayed can never claim from a run other than the one whose job it read.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  std::atomic<Function> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<uint32_t> n_pieces_{0};

  alignas(64) std::atomic<uint32_t> done_{0};  // pieces of this run
  std::atomic<bool> caller_sleeps_{false};

  // Of the caller alone.
  Clock::time_point alone_until_{};
  Clock::duration alone_for_{};

  alignas(64) std::atomic<uint32_t> wake_{0};  // changes with every run, and to stop
  std::atomic<uint32_t> n_sleepers_{0};
  std::atomic<bool> stop_{false};

  unsigned n_workers_ = 0;
  std::unique_ptr<Worker[]> workers_;
};

}  // namespace selm
