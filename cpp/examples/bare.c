/* As on a board without an operating system to speak of: the model lies in memory (flash), the session's
 * memory comes from one static array, and once a reply has begun nothing more is allocated.
 *   bare MODEL.gguf "What is 17 + 25?"
 * What the library keeps for the open model, mostly its vocabulary, still comes from malloc. */
#include <selm/selm.h>
#include <stdio.h>
#include <stdlib.h>

enum { kBudget = 6 * 1024 * 1024, kContext = 256, kBatch = 16, kReply = 48 };
static _Alignas(64) unsigned char arena[kBudget];
static size_t used;

/* A session asks for a few pieces when it is made and gives them back together: nothing to keep track of. */
static void* take(void* user, size_t size, size_t alignment) {
  (void)user;
  const size_t at = (used + alignment - 1) / alignment * alignment;
  if (at > kBudget || size > kBudget - at) return NULL;
  used = at + size;
  return arena + at;
}
static void give_back(void* user, void* memory, size_t size) { (void)user, (void)memory, (void)size; }

/* Where the library has something to say, it says it here. */
static void tell(void* user, selm_log_level level, const char* text, size_t length) {
  (void)user;
  if (level >= SELM_LOG_INFO) fprintf(stderr, "%.*s\n", (int)length, text);
}

static int failed(selm_status status) {
  fprintf(stderr, "%s [%s]\n", selm_last_error(), selm_status_name(status));
  return 1;
}

/* Stands for the flash that holds the model. */
static void* load(const char* path, uint64_t* size) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) return NULL;
  const long end = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : 0;
  void* data = end > 0 ? aligned_alloc(64, ((size_t)end + 63) / 64 * 64) : NULL;
  rewind(file);
  *size = end > 0 ? (uint64_t)end : 0;
  if (data != NULL && fread(data, 1, (size_t)end, file) != (size_t)end) *size = 0;
  fclose(file);
  return data;
}

static int answer(const selm_model* model, selm_session* session, const char* question) {
  const selm_chat_message message = {"user", question};
  char text[1024];
  selm_token prompt[kContext];
  size_t length = 0, n = 0;
  selm_status status = selm_chat_format(model, NULL, &message, 1, text, sizeof text, &length);
  if (status == SELM_OK)
    status =
        selm_tokenize(selm_model_tokenizer(model), text, length, false, true, prompt, kContext - kReply, &n);
  selm_sampling sampling = SELM_SAMPLING_INIT;
  sampling.temperature = 0;
  selm_generation_options options = SELM_GENERATION_OPTIONS_INIT;
  options.max_tokens = kReply;
  selm_generation* reply = NULL;
  if (status == SELM_OK) status = selm_generation_create(session, prompt, n, &sampling, &options, &reply);
  for (selm_finish finish = SELM_FINISH_NONE; status == SELM_OK && finish == SELM_FINISH_NONE;) {
    const char* piece = NULL;
    status = selm_generation_next(reply, &piece, &length, NULL, &finish);
    if (status == SELM_OK) fwrite(piece, 1, length, stdout);
  }
  putchar('\n');
  selm_generation_free(reply);
  return status == SELM_OK ? 0 : failed(status);
}

int main(int argc, char** argv) {
  if (argc != 3) return fprintf(stderr, "usage: %s MODEL.gguf QUESTION\n", argv[0]), 2;
  selm_source flash = SELM_SOURCE_INIT;
  void* image = load(argv[1], &flash.size);
  flash.data = image;
  selm_model_options model_options = SELM_MODEL_OPTIONS_INIT;
  model_options.log.write = tell;
  selm_model* model = NULL;
  selm_status status = selm_model_open_source(&flash, &model_options, &model);
  if (status != SELM_OK) {
    free(image);
    return failed(status);
  }
  selm_session_options options = SELM_SESSION_OPTIONS_INIT;
  options.context = kContext;
  options.batch = kBatch;
  options.threads = 1;
  options.memory_limit = kBudget - 1024; /* the rest: alignment */
  options.allocator.allocate = take;
  options.allocator.release = give_back;
  options.log.write = tell;
  selm_session* session = NULL;
  status = selm_session_create(model, &options, &session);
  const int result = status == SELM_OK ? answer(model, session, argv[2]) : failed(status);
  selm_session_free(session);
  selm_model_free(model);
  free(image);
  return result;
}
