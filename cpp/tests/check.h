// A test program in one header: TEST("name") { ... CHECK(condition) ... } and `int main() { return
// run_tests(); }` made by SELM_TEST_MAIN. A failed check says where, and the program ends with the number of
// failures.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace selm::test {

struct Case {
  const char* name;
  void (*run)();
};
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
inline int& failures() {
  static int count = 0;
  return count;
}
struct Register {
  Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};
inline void fail(const char* file, int line, const std::string& what) {
  ++failures();
  std::printf("%s:%d: FAILED %s\n", file, line, what.c_str());
}

inline int run_all() {
  int failed_cases = 0;
  for (const Case& c : cases()) {
    const int before = failures();
    c.run();
    if (failures() != before) {
      ++failed_cases;
      std::printf("not ok: %s\n", c.name);
    }
  }
  std::printf("%zu cases, %d failed\n", cases().size(), failed_cases);
  return failed_cases == 0 ? 0 : 1;
}

}  // namespace selm::test

#define SELM_JOIN_(a, b) a##b
#define SELM_JOIN(a, b) SELM_JOIN_(a, b)
#define TEST(name) TEST_(name, SELM_JOIN(test_case_, __LINE__))
#define TEST_(name, id) TEST_NAMED(name, id)  // expands id before it is pasted
#define TEST_NAMED(name, id)                                \
  static void id();                                         \
  static const ::selm::test::Register id##_entry(name, id); \
  static void id()
#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) ::selm::test::fail(__FILE__, __LINE__, #condition); \
  } while (false)
// As CHECK, but leaves the test case: for conditions that the rest relies on.
#define REQUIRE(condition)                                \
  do {                                                    \
    if (!(condition)) {                                   \
      ::selm::test::fail(__FILE__, __LINE__, #condition); \
      return;                                             \
    }                                                     \
  } while (false)
#define SELM_TEST_MAIN \
  int main() { return ::selm::test::run_all(); }
