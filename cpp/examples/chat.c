/* One chat turn through the C API:  chat MODEL.gguf "What is 17 + 25?" */
#include <selm/selm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(const char* what, selm_status status) {
  fprintf(stderr, "%s: %s [%s]\n", what, selm_last_error(), selm_status_name(status));
  return 1;
}

/* The question as the model was taught to read it. This is ChatML, which the bundled model and the
 * Qwen family speak; another model's template is in its metadata, tokenizer.chat_template. */
static selm_token* read_question(const selm_tokenizer* tokenizer, const char* question, size_t* n_tokens) {
  const char* form = "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n";
  const size_t room = strlen(form) + strlen(question) + 1;
  char* prompt = malloc(room);
  selm_token* tokens = malloc(2 * room * sizeof *tokens); /* more than any vocabulary makes of it */
  selm_status status = SELM_ERROR_OUT_OF_MEMORY;
  if (prompt != NULL && tokens != NULL) {
    const size_t length = (size_t)snprintf(prompt, room, form, question);
    status = selm_tokenize(tokenizer, prompt, length, true, true, tokens, 2 * room, n_tokens);
  }
  free(prompt);
  if (status == SELM_OK) return tokens;
  failed("cannot read the question", status);
  free(tokens);
  return NULL;
}

/* Prints the reply piece by piece, as it comes. */
static selm_status speak(selm_session* session, const selm_token* prompt, size_t n_prompt) {
  selm_generation* generation = NULL;
  selm_status status = selm_generation_create(session, prompt, n_prompt, NULL, NULL, &generation);
  for (selm_finish finish = SELM_FINISH_NONE; status == SELM_OK && finish == SELM_FINISH_NONE;) {
    const char* text = NULL;
    size_t length = 0;
    status = selm_generation_next(generation, &text, &length, NULL, &finish);
    if (status == SELM_OK) fwrite(text, 1, length, stdout);
    fflush(stdout);
  }
  putchar('\n');
  selm_generation_free(generation);
  return status;
}

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s MODEL.gguf QUESTION\n", argv[0]);
    return 2;
  }
  selm_model* model = NULL;
  selm_session* session = NULL;
  selm_status status = selm_model_open(argv[1], NULL, &model);
  if (status != SELM_OK) return failed(argv[1], status);

  int result = 1;
  size_t n_prompt = 0;
  selm_token* prompt = read_question(selm_model_tokenizer(model), argv[2], &n_prompt);
  if (prompt != NULL) {
    status = selm_session_create(model, NULL, &session);
    if (status == SELM_OK) status = speak(session, prompt, n_prompt);
    result = status == SELM_OK ? 0 : failed("no answer", status);
  }
  selm_session_free(session);
  selm_model_free(model);
  free(prompt);
  return result;
}
