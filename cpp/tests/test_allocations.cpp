// What is allocated, and when: all of it before the first token, as the plan says; and given back.
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "check.h"
#include "selm/selm.h"
#include "tiny_model.h"

namespace {

// Of this test alone: the library has no globals.
std::atomic<size_t> g_count{0};  // allocations
std::atomic<long> g_live{0};     // of those, not given back

void* counted(size_t size, size_t alignment) {
  ++g_count;
  ++g_live;
  const size_t whole = (size + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, whole == 0 ? alignment : whole);
  if (memory == nullptr) std::abort();
  return memory;
}

void returned(void* memory) {
  if (memory != nullptr) --g_live;
  std::free(memory);
}

}  // namespace

void* operator new(size_t size) { return counted(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new[](size_t size) { return counted(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(size_t size, std::align_val_t a) { return counted(size, static_cast<size_t>(a)); }
void* operator new[](size_t size, std::align_val_t a) { return counted(size, static_cast<size_t>(a)); }
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return counted(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__);
}
void* operator new[](size_t size, const std::nothrow_t&) noexcept {
  return counted(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__);
}
void operator delete(void* p) noexcept { returned(p); }
void operator delete[](void* p) noexcept { returned(p); }
void operator delete(void* p, size_t) noexcept { returned(p); }
void operator delete[](void* p, size_t) noexcept { returned(p); }
void operator delete(void* p, std::align_val_t) noexcept { returned(p); }
void operator delete[](void* p, std::align_val_t) noexcept { returned(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { returned(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { returned(p); }

namespace {

using selm::test::TempFile;
using selm::test::tiny_model;
using selm::test::tiny_selm;
using selm::test::TinyShape;

// Allocations while the reply to a prompt is made, from its second token on.
size_t allocations(const TinyShape& shape, selm_draft draft, float temperature) {
  const TempFile file(tiny_model(shape));
  selm_model* model = nullptr;
  selm_session* session = nullptr;
  selm_generation* generation = nullptr;
  selm_session_options options = SELM_SESSION_OPTIONS_INIT;
  options.threads = 2;
  const std::vector<selm_token> prompt = {'a', 'b', 'c', 'a', 'b', 'c', 'a', 'b'};
  selm_generation_options how = SELM_GENERATION_OPTIONS_INIT;
  how.draft = draft;
  how.ignore_end = true;
  selm_sampling sampling = SELM_SAMPLING_INIT;
  sampling.temperature = temperature;
  sampling.repeat_penalty = 1.1f;
  const char* stops[] = {"nothing that is said"};
  how.stop = stops;
  how.n_stop = 1;
  size_t found = SIZE_MAX;
  if (selm_model_open(file.path().c_str(), nullptr, &model) == SELM_OK &&
      selm_session_create(model, &options, &session) == SELM_OK &&
      selm_generation_create(session, prompt.data(), prompt.size(), &sampling, &how, &generation) ==
          SELM_OK) {
    const char* text = nullptr;
    size_t length = 0, steps = 0;
    selm_finish finish = SELM_FINISH_NONE;
    selm_status status = selm_generation_next(generation, &text, &length, nullptr, &finish);
    g_count = 0;
    for (; status == SELM_OK && finish == SELM_FINISH_NONE; ++steps)
      status = selm_generation_next(generation, &text, &length, nullptr, &finish);
    if (status == SELM_OK && steps > 30) found = g_count;
  }
  selm_generation_free(generation);
  selm_session_free(session);
  selm_model_free(model);
  return found;
}

}  // namespace

TEST("nothing is allocated while a reply is made") {
  for (const float temperature : {0.0f, 0.8f}) {
    CHECK(allocations({}, SELM_DRAFT_OFF, temperature) == 0);
    CHECK(allocations({}, SELM_DRAFT_LOOKUP, temperature) == 0);
    CHECK(allocations(tiny_selm(), SELM_DRAFT_OFF, temperature) == 0);
    CHECK(allocations(tiny_selm(), SELM_DRAFT_LOOKUP, temperature) == 0);
  }
  std::printf("# softmax %zu, by lookup %zu; selm %zu, by lookup %zu\n",
              allocations({}, SELM_DRAFT_OFF, 0.8f), allocations({}, SELM_DRAFT_LOOKUP, 0.8f),
              allocations(tiny_selm(), SELM_DRAFT_OFF, 0.8f),
              allocations(tiny_selm(), SELM_DRAFT_LOOKUP, 0.8f));
}

// A host's memory: counted, and given from one block of a fixed size.
struct Arena {
  std::vector<std::byte> block;
  size_t used = 0, given = 0, asked = 0;  // given: not yet returned

  static void* allocate(void* user, size_t size, size_t alignment) {
    auto* arena = static_cast<Arena*>(user);
    void* at = arena->block.data() + arena->used;
    size_t room = arena->block.size() - arena->used;
    if (std::align(alignment, size, at, room) == nullptr) return nullptr;
    arena->used = static_cast<size_t>(static_cast<std::byte*>(at) - arena->block.data()) + size;
    arena->given += size;
    arena->asked += size;
    return at;
  }
  static void release(void* user, void*, size_t size) { static_cast<Arena*>(user)->given -= size; }
};

TEST("a session's memory is the host's, and as much as the plan says") {
  for (const TinyShape& shape : {TinyShape(), tiny_selm()}) {
    const TempFile file(tiny_model(shape));
    selm_model* model = nullptr;
    REQUIRE(selm_model_open(file.path().c_str(), nullptr, &model) == SELM_OK);
    selm_session_options options = SELM_SESSION_OPTIONS_INIT;
    options.threads = 1;
    selm_memory_plan plan{};
    plan.struct_size = sizeof plan;
    REQUIRE(selm_session_plan(model, &options, &plan) == SELM_OK);
    const uint64_t planned = plan.kv_bytes + plan.scratch_bytes;
    Arena arena;
    arena.block.resize(static_cast<size_t>(planned) + 4096);
    options.allocator = {Arena::allocate, Arena::release, &arena};
    options.memory_limit = planned;
    selm_session* session = nullptr;
    REQUIRE(selm_session_create(model, &options, &session) == SELM_OK);
    CHECK(arena.asked == planned && arena.given == planned);
    selm_session* fork = nullptr;
    selm_session_options smaller = options;
    smaller.memory_limit = planned - 1;
    CHECK(selm_session_create(model, &smaller, &fork) == SELM_ERROR_OUT_OF_MEMORY && fork == nullptr);
    CHECK(arena.asked == planned);  // refused before anything was asked for
    CHECK(selm_session_create(model, &options, &fork) == SELM_ERROR_OUT_OF_MEMORY);  // the block is used up
    CHECK(arena.given == planned);
    selm_session_free(session);
    CHECK(arena.given == 0);
    options.allocator.release = nullptr;
    CHECK(selm_session_create(model, &options, &session) == SELM_ERROR_INVALID_ARGUMENT);
    selm_model_free(model);
  }
}

// Everything that a program makes and frees, once.
void use_all(const char* path) {
  selm_model* model = nullptr;
  selm_session* session = nullptr;
  selm_session* fork = nullptr;
  selm_generation* generation = nullptr;
  selm_grammar* grammar = nullptr;
  selm_matcher* matcher = nullptr;
  selm_tokenizer* tokenizer = nullptr;
  selm_session_options options = SELM_SESSION_OPTIONS_INIT;
  options.threads = 1;
  const selm_token prompt[] = {'a', 'b', 'c'};
  const char* text = nullptr;
  size_t length = 0;
  selm_finish finish = SELM_FINISH_NONE;
  selm_generation_options how = SELM_GENERATION_OPTIONS_INIT;
  CHECK(selm_tokenizer_open(path, &tokenizer) == SELM_OK);
  CHECK(selm_model_open(path, nullptr, &model) == SELM_OK);
  (void)selm_grammar_create(selm_model_tokenizer(model), SELM_GRAMMAR_GBNF, "root ::= \"a\"+", 14, &grammar);
  if (grammar != nullptr) CHECK(selm_matcher_create(grammar, &matcher) == SELM_OK);
  how.grammar = grammar;
  CHECK(selm_session_create(model, &options, &session) == SELM_OK);
  CHECK(selm_session_fork(session, nullptr, &fork) == SELM_OK);
  CHECK(selm_generation_create(session, prompt, 3, nullptr, &how, &generation) == SELM_OK);
  CHECK(selm_generation_next(generation, &text, &length, nullptr, &finish) == SELM_OK);
  selm_generation_free(generation);
  selm_session_free(fork);
  selm_session_free(session);
  selm_matcher_free(matcher);
  selm_grammar_free(grammar);
  selm_model_free(model);
  CHECK(selm_model_open("/nowhere", nullptr, &model) == SELM_ERROR_IO && model == nullptr);
  selm_tokenizer_free(tokenizer);
}

TEST("ten thousand rounds of making and freeing leave nothing behind") {
  const TempFile file(tiny_model(tiny_selm()));
  use_all(file.path().c_str());  // what the thread keeps for its last message
  const long before = g_live;
  for (int round = 0; round < 10'000; ++round) use_all(file.path().c_str());
  CHECK(g_live == before);
}

SELM_TEST_MAIN
