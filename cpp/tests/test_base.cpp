// The base floor: memory, files, cores, threads.
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/cpu.h"
#include "base/file_bytes.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "check.h"

using selm::AlignedBuffer;
using selm::Code;
using selm::FileBytes;
using selm::Result;
using selm::Status;
using selm::ThreadPool;

namespace {

// A folder of its own for each test, removed with what the test names.
class Folder {
 public:
  Folder() {
    const char* root = std::getenv("TMPDIR");
    path_ = std::string(root != nullptr ? root : "/tmp") + "/selm-test-XXXXXX";
    if (::mkdtemp(path_.data()) == nullptr) path_.clear();
  }
  ~Folder() {
    for (auto it = made_.rbegin(); it != made_.rend(); ++it) std::remove(it->c_str());
    std::remove(path_.c_str());
  }
  bool ok() const { return !path_.empty(); }
  const std::string& path() const { return path_; }
  std::string name(const std::string& inside) {
    made_.push_back(path_ + "/" + inside);
    return made_.back();
  }
  std::string file(const std::string& inside, const std::string& text) {
    const std::string path = name(inside);
    std::FILE* out = std::fopen(path.c_str(), "wb");
    if (out != nullptr) {
      std::fwrite(text.data(), 1, text.size(), out);
      std::fclose(out);
    }
    return path;
  }
  void folder(const std::string& inside) { ::mkdir(name(inside).c_str(), 0700); }

 private:
  std::string path_;
  std::vector<std::string> made_;
};

}  // namespace

// ---- Status and memory ------------------------------------------------------------------------

TEST("status and result") {
  CHECK(Status().ok() && Status().message().empty());
  const Status bad = selm::error(Code::format, "at byte %d: %s", 7, "no");
  CHECK(!bad.ok() && bad.code() == Code::format && bad.message() == "at byte 7: no");
  const auto twice = [](Result<int> in) -> Result<int> {
    SELM_ASSIGN(const int x, in);
    return 2 * x;
  };
  CHECK(twice(21).ok() && twice(21).value() == 42);
  CHECK(twice(bad).status().message() == "at byte 7: no");
}

TEST("checked arithmetic") {
  uint64_t out = 0;
  CHECK(selm::checked_mul<uint64_t>(uint64_t{1} << 31, uint64_t{1} << 32, &out) && out == uint64_t{1} << 63);
  CHECK(!selm::checked_mul<uint64_t>(uint64_t{1} << 32, uint64_t{1} << 32, &out));
  CHECK(selm::checked_add<uint64_t>(UINT64_MAX - 1, 1, &out) && out == UINT64_MAX);
  CHECK(!selm::checked_add<uint64_t>(UINT64_MAX, 1, &out));
  CHECK(selm::checked_align<uint64_t>(33, 32, &out) && out == 64);
  CHECK(selm::checked_align<uint64_t>(0, 32, &out) && out == 0);
  CHECK(selm::checked_align<uint64_t>(64, 32, &out) && out == 64);
  CHECK(!selm::checked_align<uint64_t>(UINT64_MAX - 30, 32, &out));
}

TEST("aligned buffers") {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{65}, size_t{100000}}) {
    std::optional<AlignedBuffer> made = AlignedBuffer::make(size);
    REQUIRE(made.has_value());
    CHECK(made->size() == size && reinterpret_cast<uintptr_t>(made->data()) % 64 == 0);
    if (size > 0) std::memset(made->data(), 1, (size + 63) / 64 * 64);  // whole lines are ours
    AlignedBuffer moved = std::move(*made);
    CHECK(moved.size() == size && made->size() == 0 && made->data() == nullptr);
    *made = std::move(moved);
    CHECK(made->size() == size && moved.data() == nullptr);
  }
  CHECK(!AlignedBuffer::make(SIZE_MAX).has_value());
  CHECK(!AlignedBuffer::make(SIZE_MAX - 62).has_value());
}

// ---- Files ------------------------------------------------------------------------------------

TEST("a file is mapped as it is, read-only permission suffices") {
  Folder folder;
  REQUIRE(folder.ok());
  const std::string path = folder.file("a", "hello");
  ::chmod(path.c_str(), 0400);
  Result<FileBytes> map = FileBytes::open(path);
  REQUIRE(map.ok());
  CHECK(map.value().bytes().size() == 5 && std::memcmp(map.value().bytes().data(), "hello", 5) == 0);
  // A map may move, and outlives the name of its file.
  FileBytes moved = std::move(map.value());
  std::remove(path.c_str());
  CHECK(moved.bytes().size() == 5 && std::memcmp(moved.bytes().data(), "hello", 5) == 0);
  CHECK(map.value().bytes().empty());
  FileBytes other;
  other = std::move(moved);
  CHECK(other.bytes().size() == 5);
}

TEST("an empty file has no bytes") {
  Folder folder;
  REQUIRE(folder.ok());
  Result<FileBytes> map = FileBytes::open(folder.file("empty", ""));
  CHECK(map.ok() && map.value().bytes().empty());
}

TEST("what is no file is refused, and nothing waits") {
  Folder folder;
  REQUIRE(folder.ok());
  const auto refused = [](const std::string& path, const char* cause) {
    const Status status = FileBytes::open(path).status();
    return status.code() == Code::io && status.message().find(cause) != std::string::npos;
  };
  CHECK(refused(folder.path(), "directory"));
  const std::string pipe = folder.name("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(refused(pipe, "not a regular file"));
  CHECK(refused("/dev/null", "not a regular file"));
  CHECK(refused(folder.path() + "/absent", "cannot open: No such file"));
  CHECK(refused("", "cannot open"));
  CHECK(refused(std::string("a\0b", 3), "NUL"));
  const std::string locked = folder.file("locked", "x");
  ::chmod(locked.c_str(), 0);
  if (::geteuid() != 0) CHECK(refused(locked, "Permission denied"));
  const std::string loop = folder.name("loop");
  REQUIRE(::symlink(loop.c_str(), loop.c_str()) == 0);
  CHECK(refused(loop, "cannot open"));
}

TEST("no descriptor stays open") {
  Folder folder;
  REQUIRE(folder.ok());
  const std::string path = folder.file("a", "hello");
  const int before = ::open(path.c_str(), O_RDONLY);
  ::close(before);
  Result<FileBytes> map = FileBytes::open(path);
  (void)FileBytes::open(folder.path());
  const int after = ::open(path.c_str(), O_RDONLY);
  ::close(after);
  CHECK(map.ok() && before == after);
}

// ---- The machine ------------------------------------------------------------------------------

// The words of a line of /proc/cpuinfo between spaces; empty where there is none.
std::string processor_flags(const char* line_name) {
  std::FILE* info = std::fopen("/proc/cpuinfo", "r");
  std::string flags;
  if (info == nullptr) return flags;
  char line[16384];
  while (std::fgets(line, sizeof line, info) != nullptr) {
    if (std::strncmp(line, line_name, std::strlen(line_name)) == 0) {
      flags = std::string(" ") + (std::strchr(line, ':') + 1);
      break;
    }
  }
  std::fclose(info);
  if (!flags.empty()) flags.back() = ' ';
  return flags;
}

// Of another architecture's processor (emulators show the host's list) nothing is found.
TEST("instruction sets agree with the kernel's list") {
#if defined(__aarch64__)
  const std::string flags = processor_flags("Features");
#elif defined(__x86_64__)
  const std::string flags = processor_flags("flags");
#else
  const std::string flags;  // no instruction set is looked for there
#endif
  if (flags.empty()) return;
  const auto listed = [&](const char* name) {
    return flags.find(std::string(" ") + name + " ") != std::string::npos;
  };
  const selm::CpuFeatures f = selm::cpu_features();
  CHECK(f.neon == listed("asimd") && f.dotprod == listed("asimddp") && f.i8mm == listed("i8mm"));
  CHECK(f.avx2 == listed("avx2") && f.fma == listed("fma") && f.f16c == listed("f16c"));
  CHECK(f.avx512f == listed("avx512f") && f.avx512bw == listed("avx512bw") &&
        f.avx512dq == listed("avx512dq"));
  CHECK(f.avx512vl == listed("avx512vl") && f.avx512vnni == listed("avx512_vnni"));
  CHECK(f.avx512bf16 == listed("avx512_bf16"));
  CHECK(f.amx_tile == listed("amx_tile") && f.amx_int8 == listed("amx_int8") &&
        f.amx_bf16 == listed("amx_bf16"));
}

TEST("usable cores follow the affinity mask") {
  cpu_set_t before;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  const unsigned all = selm::usable_cores();
  CHECK(all >= 1 && all <= static_cast<unsigned>(CPU_COUNT(&before)));
  int first = 0;
  while (!CPU_ISSET(first, &before)) ++first;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
  CHECK(selm::usable_cores() == 1);
  REQUIRE(sched_setaffinity(0, sizeof before, &before) == 0);
  CHECK(selm::usable_cores() == all);
}

TEST("slow cores are not counted where there are fast ones") {
  Folder folder;
  REQUIRE(folder.ok());
  const std::string& root = folder.path();
  const std::vector<uint32_t> four = {0, 1, 2, 3}, slow = {2, 3};
  CHECK(selm::fast_cores(four, root) == 4);  // the system says nothing
  CHECK(selm::fast_cores({}, root) == 0);
  for (const char* name : {"cpu_atom", "system", "system/cpu", "system/cpu/cpu0", "system/cpu/cpu1",
                           "system/cpu/cpu2", "system/cpu/cpu3"}) {
    folder.folder(name);
  }
  folder.file("cpu_atom/cpus", "2-3,7\n");
  CHECK(selm::fast_cores(four, root) == 2 && selm::fast_cores(slow, root) == 2);
  folder.file("cpu_atom/cpus", "1,3\n");
  CHECK(selm::fast_cores(four, root) == 2);
  for (const char* nonsense : {"", "-", "x-y", "5-1", ",,"}) {
    folder.file("cpu_atom/cpus", nonsense);
    CHECK(selm::fast_cores(four, root) == 4);
  }
  folder.file("system/cpu/cpu0/cpu_capacity", "1024\n");  // one large, one middle, two little ones
  folder.file("system/cpu/cpu1/cpu_capacity", "800\n");
  folder.file("system/cpu/cpu2/cpu_capacity", "250\n");
  folder.file("system/cpu/cpu3/cpu_capacity", "250\n");
  CHECK(selm::fast_cores(four, root) == 2 && selm::fast_cores(slow, root) == 2);
}

TEST("CPU quota, cgroup version 2: the tightest up to the root") {
  Folder folder;
  REQUIRE(folder.ok());
  const std::string& root = folder.path();
  CHECK(selm::cgroup_cores("0::/a/b\n", root) == 0);  // no files at all
  folder.folder("a");
  folder.folder("a/b");
  folder.file("a/b/cpu.max", "max 100000\n");
  CHECK(selm::cgroup_cores("0::/a/b\n", root) == 0);
  folder.file("a/cpu.max", "300000 100000\n");
  CHECK(selm::cgroup_cores("0::/a/b\n", root) == 3 && selm::cgroup_cores("0::/a\n", root) == 3);
  CHECK(selm::cgroup_cores("0::/\n", root) == 0);
  folder.file("a/b/cpu.max", "150000 100000\n");
  CHECK(selm::cgroup_cores("0::/a/b\n", root) == 2);  // 1.5
  folder.file("a/b/cpu.max", "140000 100000\n");
  CHECK(selm::cgroup_cores("0::/a/b", root) == 1);
  folder.file("a/b/cpu.max", "5000 100000\n");
  CHECK(selm::cgroup_cores("0::/a/b\n", root) == 1);  // never 0: that means no limit
  // The path of another namespace: the root of what is mounted answers.
  folder.file("cpu.max", "200000 100000\n");
  CHECK(selm::cgroup_cores("0::/system.slice/docker-1.scope\n", root) == 2);
  for (const char* nonsense :
       {"", "\n", "100000", "x y", "100000 0\n", "99999999999999999999999 1\n", "-1 100000\n"}) {
    folder.file("cpu.max", nonsense);
    CHECK(selm::cgroup_cores("0::/\n", root) == 0);
  }
}

TEST("CPU quota, cgroup version 1") {
  Folder folder;
  REQUIRE(folder.ok());
  const std::string& root = folder.path();
  folder.folder("cpu,cpuacct");
  folder.folder("cpu,cpuacct/job");
  folder.file("cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  folder.file("cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  folder.file("cpu,cpuacct/job/cpu.cfs_quota_us", "400000\n");
  folder.file("cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  const std::string membership = "12:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n";
  CHECK(selm::cgroup_cores(membership, root) == 4);
  CHECK(selm::cgroup_cores("4:cpu,cpuacct:/\n", root) == 0);
  CHECK(selm::cgroup_cores("4:cpuset:/job\n", root) == 0);
  for (const char* nonsense : {"", "::", "a", "a:b", ":::\n\n:"}) (void)selm::cgroup_cores(nonsense, root);
}

// ---- Threads ----------------------------------------------------------------------------------

TEST("every piece is done once, by a thread of the pool, and no two use one number at once") {
  for (const unsigned n_threads : {0u, 1u, 2u, 3u, 8u}) {
    ThreadPool pool(n_threads);
    CHECK(pool.size() == std::max(1u, n_threads));
    std::vector<std::atomic<uint32_t>> busy(pool.size());  // no bool: session.h says why
    for (const size_t n : {size_t{0}, size_t{1}, size_t{2}, size_t{3}, size_t{7}, size_t{64}, size_t{1000}}) {
      std::vector<int> done(n);
      std::atomic<int> clashes{0};
      pool.run(n, [&](size_t index, unsigned thread) {
        if (thread >= pool.size() || busy[thread].exchange(1)) ++clashes;
        ++done[index];  // plain memory: the end of the run must make it visible
        busy[thread] = 0;
      });
      bool once = clashes == 0;
      for (const int count : done) once &= count == 1;
      CHECK(once);
    }
  }
}

TEST("many short runs one after another, with what each left behind") {
  ThreadPool pool(3);
  std::vector<uint64_t> values(8, 1);
  bool right = true;
  for (uint64_t round = 1; round <= 20000; ++round) {
    // Every piece reads all of the last round and writes its own place of the next.
    std::vector<uint64_t> next(values.size());
    pool.run(values.size() - static_cast<size_t>(round % 3), [&](size_t i) {
      uint64_t sum = 0;
      for (const uint64_t v : values) sum += v;
      next[i] = sum % 1000003 + i;
    });
    uint64_t expected = 0;
    for (const uint64_t v : values) expected += v;
    for (size_t i = 0; i < values.size(); ++i) {
      right &= next[i] == (i < values.size() - round % 3 ? expected % 1000003 + i : 0);
    }
    values = next;
  }
  CHECK(right);
}

TEST("workers that have gone to sleep come back") {
  ThreadPool pool(2);
  for (int round = 0; round < 30; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 3));
    // Time for the worker to wake; where the machine is busy, the caller may do without it at first.
    bool came = false;
    for (int trial = 0; trial < 2000 && !came; ++trial) {
      std::atomic<bool> other{false};
      pool.run(4, [&](size_t, unsigned thread) {
        if (thread != 0) other = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      });
      came = other;
    }
    CHECK(came);
  }
}

TEST("a worker that holds up the caller is left out for a while, and asked again") {
  ThreadPool pool(2);
  int alone = 0, together = 0;
  for (int round = 0; round < 200; ++round) {
    std::atomic<bool> other{false};
    std::atomic<int> done{0};
    pool.run(8, [&](size_t, unsigned thread) {
      if (thread != 0) {
        other = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(30));  // as if it had lost its core
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
      ++done;
    });
    CHECK(done == 8);
    ++(other ? together : alone);
  }
  CHECK(alone >= 20 && together >= 2);
}

TEST("a caller that waits long for the last piece sleeps and is woken") {
  ThreadPool pool(2);
  for (int round = 0; round < 10; ++round) {
    std::atomic<bool> slow_one_taken{false};
    std::atomic<int> done{0};
    pool.run(2, [&](size_t, unsigned thread) {
      if (thread != 0) {
        slow_one_taken = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(3));
      } else {
        for (int i = 0; i < 100 && !slow_one_taken; ++i)  // the worker may be left out: see above
          std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
      ++done;
    });
    CHECK(done == 2);
  }
}

TEST("pools come and go, several at a time, used or not") {
  for (int round = 0; round < 50; ++round) {
    ThreadPool a(4), b(2);
    std::atomic<int> sum{0};
    if (round % 2 == 0) a.run(10, [&](size_t i) { sum += static_cast<int>(i); });
    b.run(3, [&](size_t i) { sum += static_cast<int>(i); });
    CHECK(sum == (round % 2 == 0 ? 48 : 3));
  }
}

TEST("two pools in two threads") {
  const auto work = [](uint64_t* sum) {
    ThreadPool pool(2);
    for (int round = 0; round < 2000; ++round) {
      std::atomic<uint64_t> total{0};
      pool.run(5, [&](size_t i) { total += i; });
      *sum += total;
    }
  };
  uint64_t a = 0, b = 0;
  std::thread other(work, &a);
  work(&b);
  other.join();
  CHECK(a == 20000 && b == 20000);
}

TEST("SHA-256 gives the digests of FIPS 180-4, however the bytes come in") {
  const auto digest = [](const std::string& text, size_t step) {
    selm::Sha256 hash;
    const auto bytes = std::as_bytes(std::span(text));
    for (size_t i = 0; i < bytes.size(); i += step)
      hash.update(bytes.subspan(i, std::min(step, bytes.size() - i)));
    return hash.finish();
  };
  const std::string two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";  // 56 bytes: two blocks
  for (const size_t step : {1, 3, 55, 64, 65, 1000000}) {
    CHECK(digest("", step) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(digest("abc", step) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(digest(two, step) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(digest(std::string(1000000, 'a'), step) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

SELM_TEST_MAIN
