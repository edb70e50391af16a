// The outcome of anything that can fail: a code for programs, a message for people.
// The core is built without exceptions; every fallible function returns Status or Result<T>.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <variant>

namespace selm {

// Mirrors selm_status in selm.h, value by value (checked in api/).
enum class Code : int32_t {
  ok = 0,
  invalid_argument = 1,  // the caller's mistake
  io = 2,                // the operating system refused: no such file, permission, short read
  format = 3,            // the file breaks the GGUF format or contradicts itself
  unsupported = 4,       // a valid file that this core does not run
  out_of_memory = 5,
  context_full = 6,  // no room for the tokens asked for
  cancelled = 7,
  deadline = 8,
  internal = 9,
  buffer_too_small = 10,  // the length needed was given; call again with that room
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::ok; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::ok;
  std::string message_;
};

// printf-style; messages say the cause and, for files, the byte offset ("at byte 24: ...").
[[gnu::format(printf, 2, 3)]] inline Status error(Code code, const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return Status(code, text);
}

// Either a value or the Status that says why there is none. value() requires ok().
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : data_(std::in_place_index<0>, std::move(value)) {}         // NOLINT: implicit on purpose
  Result(Status status) : data_(std::in_place_index<1>, std::move(status)) {}  // NOLINT

  bool ok() const { return data_.index() == 0; }
  T& value() { return *std::get_if<0>(&data_); }
  const T& value() const { return *std::get_if<0>(&data_); }
  Status status() const { return ok() ? Status() : *std::get_if<1>(&data_); }

 private:
  std::variant<T, Status> data_;
};

#define SELM_CONCAT_(a, b) a##b
#define SELM_CONCAT(a, b) SELM_CONCAT_(a, b)

// Returns early with the Status of an expression that failed.
#define SELM_TRY(expression)                                                  \
  do {                                                                        \
    if (::selm::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

// SELM_ASSIGN(auto x, f()): x becomes the value, or the enclosing function returns the Status.
#define SELM_ASSIGN(target, expression) SELM_ASSIGN_(SELM_CONCAT(result_, __LINE__), target, expression)
#define SELM_ASSIGN_(name, target, expression) \
  auto name = (expression);                    \
  if (!name.ok()) return name.status();        \
  target = std::move(name.value())

}  // namespace selm
