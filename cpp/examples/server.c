/* Two conversations at once: one model, a session for each, a thread for each.
 *   server MODEL.gguf "What is 17 + 25?" "Hello, who are you?" */
#include <pthread.h>
#include <selm/selm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct talk {
  selm_model* model;
  const char* question;
  char reply[4096];
  size_t length;
  selm_status status;
  char error[256]; /* of the thread that failed: messages are a thread's own */
} talk;

static selm_status prompt_of(const talk* talk, selm_token* tokens, size_t capacity, size_t* n) {
  const selm_chat_message question = {"user", talk->question};
  char text[2048];
  size_t length = 0;
  const selm_status status = selm_chat_format(talk->model, NULL, &question, 1, text, sizeof text, &length);
  if (status != SELM_OK) return status;
  return selm_tokenize(selm_model_tokenizer(talk->model), text, length, false, true, tokens, capacity, n);
}

static selm_status answer(talk* talk, selm_session* session) {
  selm_token prompt[1024];
  size_t n = 0;
  selm_status status = prompt_of(talk, prompt, sizeof prompt / sizeof *prompt, &n);
  selm_generation_options options = SELM_GENERATION_OPTIONS_INIT;
  options.max_tokens = 64;
  selm_sampling sampling = SELM_SAMPLING_INIT;
  sampling.temperature = 0;
  selm_generation* generation = NULL;
  if (status == SELM_OK)
    status = selm_generation_create(session, prompt, n, &sampling, &options, &generation);
  for (selm_finish finish = SELM_FINISH_NONE; status == SELM_OK && finish == SELM_FINISH_NONE;) {
    const char* text = NULL;
    size_t length = 0;
    status = selm_generation_next(generation, &text, &length, NULL, &finish);
    if (status != SELM_OK) break;
    if (length > sizeof talk->reply - talk->length) length = sizeof talk->reply - talk->length;
    memcpy(talk->reply + talk->length, text, length);
    talk->length += length;
  }
  selm_generation_free(generation);
  return status;
}

static void* serve(void* argument) {
  talk* own = argument;
  selm_session_options options = SELM_SESSION_OPTIONS_INIT;
  options.threads = 1; /* as many threads as conversations, not as many as both would like */
  selm_session* session = NULL;
  own->status = selm_session_create(own->model, &options, &session);
  if (own->status == SELM_OK) own->status = answer(own, session);
  if (own->status != SELM_OK) snprintf(own->error, sizeof own->error, "%s", selm_last_error());
  selm_session_free(session);
  return NULL;
}

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: %s MODEL.gguf QUESTION QUESTION\n", argv[0]);
    return 2;
  }
  selm_model* model = NULL;
  if (selm_model_open(argv[1], NULL, &model) != SELM_OK) {
    fprintf(stderr, "%s: %s\n", argv[1], selm_last_error());
    return 1;
  }
  talk* talks = calloc(2, sizeof *talks);
  pthread_t threads[2];
  int started = 0, failures = talks == NULL;
  for (; talks != NULL && started < 2; ++started) {
    talks[started].model = model;
    talks[started].question = argv[2 + started];
    if (pthread_create(&threads[started], NULL, serve, &talks[started]) != 0) break;
  }
  for (int i = 0; i < started; ++i) {
    pthread_join(threads[i], NULL);
    if (talks[i].status != SELM_OK) fprintf(stderr, "%s\n", talks[i].error);
    failures += talks[i].status != SELM_OK;
    printf("%s\n%.*s\n", talks[i].question, (int)talks[i].length, talks[i].reply);
  }
  free(talks);
  selm_model_free(model);
  return failures != 0 || started < 2;
}
