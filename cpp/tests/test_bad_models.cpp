// 100,000 damaged files: each is refused or opens, at little cost in time and memory.
//
//   test_bad_models [HOW_MANY]
//   test_bad_models FOLDER      every file in it is refused (tests/support/bad_files.py writes some)
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "selm/selm.h"
#include "tiny_model.h"

namespace {

constexpr size_t kMostBytes = size_t{64} << 20;
constexpr double kMostSeconds = 0.05;

std::atomic<size_t> g_held{0}, g_most{0};  // of this test alone: the library has no globals

// Each block is preceded by its size and by how far it lies behind what malloc gave.
void* counted(size_t size, size_t alignment) {
  alignment = std::max(alignment, 2 * sizeof(size_t));
  void* raw = size > SIZE_MAX - 2 * alignment ? nullptr : std::malloc(size + 2 * alignment);
  if (raw == nullptr) return nullptr;
  const size_t at =
      (reinterpret_cast<uintptr_t>(raw) + 2 * sizeof(size_t) + alignment - 1) & ~(alignment - 1);
  auto* words = reinterpret_cast<size_t*>(at);
  words[-1] = size;
  words[-2] = at - reinterpret_cast<uintptr_t>(raw);
  g_most = std::max<size_t>(g_most, g_held += size);
  return words;
}
void* counted_or_end(size_t size, size_t alignment) {
  void* memory = counted(size, alignment);
  if (memory == nullptr) std::abort();
  return memory;
}
void uncounted(void* memory) {
  if (memory == nullptr) return;
  auto* words = static_cast<size_t*>(memory);
  g_held -= words[-1];
  std::free(static_cast<char*>(memory) - words[-2]);
}
constexpr size_t kUsual = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

}  // namespace

void* operator new(size_t size) { return counted_or_end(size, kUsual); }
void* operator new[](size_t size) { return counted_or_end(size, kUsual); }
void* operator new(size_t size, std::align_val_t a) { return counted_or_end(size, static_cast<size_t>(a)); }
void* operator new[](size_t size, std::align_val_t a) { return counted_or_end(size, static_cast<size_t>(a)); }
void* operator new(size_t size, const std::nothrow_t&) noexcept { return counted(size, kUsual); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept { return counted(size, kUsual); }
void operator delete(void* p) noexcept { uncounted(p); }
void operator delete[](void* p) noexcept { uncounted(p); }
void operator delete(void* p, size_t) noexcept { uncounted(p); }
void operator delete[](void* p, size_t) noexcept { uncounted(p); }
void operator delete(void* p, std::align_val_t) noexcept { uncounted(p); }
void operator delete[](void* p, std::align_val_t) noexcept { uncounted(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { uncounted(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { uncounted(p); }

namespace {

// Processor time of this thread: another program's work does not count.
double seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Changes that a format reader stumbles over: numbers at the edge of a type, lengths, cuts, moves.
void damage(std::vector<uint64_t>& words, size_t* size, size_t directory, std::mt19937& draw) {
  auto* bytes = reinterpret_cast<unsigned char*>(words.data());
  const auto below = [&draw](size_t n) { return static_cast<size_t>(draw()) % n; };
  const size_t edits = 1 + below(4);
  for (size_t i = 0; i < edits; ++i) {
    const size_t at = below(directory - 8);
    const uint64_t numbers[] = {0,
                                1,
                                0x7F,
                                0xFF,
                                0xFFFF,
                                0x7FFFFFFF,
                                0xFFFFFFFF,
                                UINT64_MAX,
                                UINT64_MAX / 2,
                                uint64_t{1} << 40,
                                uint64_t{1} << 63};
    switch (below(7)) {
      case 0:
        bytes[at] = static_cast<unsigned char>(draw());
        break;
      case 1:
        bytes[at] = static_cast<unsigned char>(bytes[at] ^ (1u << below(8)));
        break;
      case 2:
        std::memcpy(bytes + at, &numbers[below(std::size(numbers))], 8);
        break;
      case 3:
        std::memcpy(bytes + at, &numbers[below(std::size(numbers))], 4);
        break;
      case 4:
        std::memmove(bytes + at, bytes + below(directory - 64), below(64));
        break;
      case 5:
        bytes[at] = static_cast<unsigned char>(bytes[at] + below(5) - 2);
        break;
      default:
        *size = below(4) == 0 ? below(*size) + 1 : *size;
        break;
    }
  }
}

struct Good {
  std::vector<std::byte> bytes;
  size_t directory;  // bytes before the weights

  explicit Good(selm::test::GgufBuilder builder) : bytes(builder.build()), directory(bytes.size()) {
    for (const auto& tensor : builder.tensors()) directory -= (tensor.data.size() + 31) / 32 * 32;
  }
};

// What opening files costs, and what became of them.
struct Account {
  size_t files = 0, opened = 0, failures = 0, most = 0;
  double slowest = 0;
  std::map<std::string, size_t> outcomes;

  void open(const selm_source& source, const std::string& name, bool must_open, bool may_open) {
    selm_model* model = nullptr;
    const size_t base = g_held;
    g_most = base;
    const double start = seconds();
    const selm_status status = selm_model_open_source(&source, nullptr, &model);
    const double took = seconds() - start;
    slowest = std::max(slowest, took);
    most = std::max<size_t>(most, g_most - base);
    ++files;
    ++outcomes[selm_status_name(status)];
    const bool ok = status == SELM_OK;
    opened += ok;
    const bool usual = ok || status == SELM_ERROR_FORMAT || status == SELM_ERROR_UNSUPPORTED;
    const bool told = ok || (*selm_last_error() != '\0' && model == nullptr);
    if (!usual || !told || (must_open && !ok) || (!may_open && ok) || g_most - base > kMostBytes ||
        took > kMostSeconds) {
      ++failures;
      std::printf("not ok: %s: %s (%s), %zu bytes, %.1f ms\n", name.c_str(), selm_status_name(status),
                  ok ? "" : selm_last_error(), g_most - base, took * 1e3);
    }
    selm_model_free(model);
  }

  int sum_up() const {
    for (const auto& [name, count] : outcomes) std::printf("# %s: %zu\n", name.c_str(), count);
    std::printf("# at most %.2f MB and %.2f ms\n", static_cast<double>(most) / 1e6, slowest * 1e3);
    std::printf("%zu files, %zu opened, %zu failures\n", files, opened, failures);
    return failures == 0 && files > 0 ? 0 : 1;
  }
};

int check_folder(const char* folder) {
  Account account;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    for (const bool copy : {false, true}) {
      selm_source source = SELM_SOURCE_INIT;
      const std::string path = entry.path().string();
      source.path = path.c_str();
      source.copy = copy;
      account.open(source, path, false, false);
    }
  return account.sum_up();
}

int check_damaged(size_t wanted) {
  Account account;
  std::mt19937 draw(7);
  const Good goods[] = {Good(selm::test::tiny_model()),
                        Good(selm::test::tiny_model(selm::test::tiny_selm()))};
  for (size_t n = 0; n < wanted; ++n) {
    const Good& good = goods[n % 2];
    std::vector<uint64_t> words((good.bytes.size() + 7) / 8);
    std::memcpy(words.data(), good.bytes.data(), good.bytes.size());
    size_t size = good.bytes.size();
    if (n >= 2) damage(words, &size, good.directory, draw);  // first, each as it is
    selm_source source = SELM_SOURCE_INIT;
    source.data = words.data();
    source.size = size;
    account.open(source, "file " + std::to_string(n), n < 2, true);
  }
  return account.opened < wanted / 2 ? account.sum_up() : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::filesystem::is_directory(argv[1])) return check_folder(argv[1]);
  return check_damaged(argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 100'000);
}
