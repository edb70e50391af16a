/* One chat turn through the C API:  chat MODEL.gguf "What is 17 + 25?" */
#include <selm/selm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(const char* what, selm_status status) {
  fprintf(stderr, "%s: %s [%s]\n", what, selm_last_error(), selm_status_name(status));
  return 1;
}

/* The conversation so far, in the words of the model's own template, as tokens. */
static selm_token* read_chat(const selm_model* model, const selm_chat_message* messages, size_t n_messages,
                             size_t* n_tokens) {
  size_t length = 0;
  selm_status status = selm_chat_format(model, NULL, messages, n_messages, NULL, 0, &length);
  char* text = malloc(length + 1);
  selm_token* tokens = malloc(2 * (length + 1) * sizeof *tokens); /* more than any vocabulary makes of it */
  if (status == SELM_OK && text != NULL && tokens != NULL)
    status = selm_chat_format(model, NULL, messages, n_messages, text, length, &length);
  if (status == SELM_OK && text != NULL && tokens != NULL)
    status = selm_tokenize(selm_model_tokenizer(model), text, length, false, true, tokens, 2 * (length + 1),
                           n_tokens);
  free(text);
  if (status == SELM_OK && text != NULL && tokens != NULL) return tokens;
  failed("cannot read the question", status == SELM_OK ? SELM_ERROR_OUT_OF_MEMORY : status);
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
  const selm_chat_message question = {"user", argv[2]};
  selm_token* prompt = read_chat(model, &question, 1, &n_prompt);
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
