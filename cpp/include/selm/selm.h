/* SELM Edge: run GGUF language models on this device. The C API.
 *
 * - Every call that can fail returns a selm_status; selm_last_error() has the sentence for people,
 *   of the calling thread's last failed call.
 * - Structs begin with struct_size. Options: start from the _INIT macro, change what you want. Results:
 *   set struct_size = sizeof the struct. A struct only grows, behind its last byte: a program that knows a
 *   shorter one goes on working.
 * - Handles are opaque. A model, tokenizer, grammar or embedder may be used by several threads at once; a
 * session, or generation by one thread at a time, except selm_session_cancel. A thread that evaluates needs
 *   some 256 KB of stack.
 * - Text is UTF-8 with an explicit length; it need not end in NUL unless a parameter says `const char*`
 * alone.
 * - Safe to open any file: a bad one gives SELM_ERROR_FORMAT or SELM_ERROR_UNSUPPORTED.
 */
#ifndef SELM_H
#define SELM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SELM_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef enum selm_status {
  SELM_OK = 0,
  SELM_ERROR_INVALID_ARGUMENT = 1,
  SELM_ERROR_IO = 2,
  SELM_ERROR_FORMAT = 3,      /* the file breaks the format or contradicts itself */
  SELM_ERROR_UNSUPPORTED = 4, /* a valid file that this library does not run */
  SELM_ERROR_OUT_OF_MEMORY = 5,
  SELM_ERROR_CONTEXT_FULL = 6, /* no room for the tokens asked for; nothing was evaluated */
  SELM_ERROR_CANCELLED = 7,
  SELM_ERROR_DEADLINE = 8,
  SELM_ERROR_INTERNAL = 9,
  SELM_ERROR_BUFFER_TOO_SMALL = 10 /* the length needed was given: call again with that room */
} selm_status;

typedef int32_t selm_token;
typedef struct selm_model selm_model;
typedef struct selm_tokenizer selm_tokenizer;
typedef struct selm_session selm_session;
typedef struct selm_adapter selm_adapter;
typedef struct selm_generation selm_generation;
typedef struct selm_embedder selm_embedder;
typedef struct selm_grammar selm_grammar;
typedef struct selm_matcher selm_matcher;

/* Changes when a program that was built against an older header has to be built anew. */
#define SELM_ABI 2
SELM_API uint32_t selm_abi(void);                          /* SELM_ABI of this library */
SELM_API const char* selm_version(void);                   /* "0.1.0" */
SELM_API const char* selm_last_error(void);                /* of this thread; "" if none */
SELM_API const char* selm_status_name(selm_status status); /* "format", ... */

typedef struct selm_cpu_info {
  size_t struct_size;
  const char* isa;          /* the best instruction set here, or SELM_ISA where that is set and available */
  const char* available[8]; /* every one that a model can be opened with; NULL after the last */
  uint32_t cores;           /* that this process may use: affinity and control groups counted in */
} selm_cpu_info;
SELM_API selm_status selm_cpu_get_info(selm_cpu_info* info);

/* What a handle has to tell besides errors, which are statuses. Called by the thread that works with the
 * handle, during a call; `text` is one line of `length` bytes, ended by NUL, until it returns. It may not
 * call this library with the same handle. */
typedef enum selm_log_level {
  SELM_LOG_DEBUG = 0,  /* each prompt and reply: tokens, seconds */
  SELM_LOG_INFO = 1,   /* what was opened, made or freed, and how large it is */
  SELM_LOG_WARNING = 2 /* it works, but perhaps not as well as it could, or not as asked */
} selm_log_level;
typedef struct selm_log {
  void (*write)(void* user, selm_log_level level, const char* text,
                size_t length); /* NULL: nothing is told */
  void* user;
} selm_log;

/* ---- Model ------------------------------------------------------------------------------- */

typedef struct selm_model_options {
  size_t struct_size;
  bool check_weights; /* also look for infinite or NaN scales in every block (reads the whole file) */
  /* NULL: SELM_ISA or the best; "scalar", "avx2", "avx512", "amx"; "neon", "dotprod", "i8mm" */
  const char* isa;
  selm_log log;
} selm_model_options;
#define SELM_MODEL_OPTIONS_INIT                             \
  {                                                         \
    sizeof(selm_model_options), false, NULL, { NULL, NULL } \
  }

/* Maps the file; weights stay as they are on disk. options may be NULL. */
SELM_API selm_status selm_model_open(const char* path, const selm_model_options* options, selm_model** model);

/* Where a model's file is: exactly one of path, fd, data and read. */
typedef struct selm_source {
  size_t struct_size;
  const char* path;
  int fd;           /* -1: none; a regular file, from its beginning; yours to close after the call */
  const void* data; /* size bytes at an 8-byte boundary, which outlive the model */
  uint64_t size;    /* of data, or of what read gives */
  /* Writes at most `wanted` bytes from `offset` on; returns how many, 0: failed. Called before the open
   * returns. */
  size_t (*read)(void* user, uint64_t offset, void* buffer, size_t wanted);
  void* user;
  /* path, fd: into memory instead of mapped. A mapped file that another program shortens ends this one by a
   * signal (SIGBUS); a copy that ends too soon is SELM_ERROR_IO. What `read` gives is copied, too. */
  bool copy;
} selm_source;
#define SELM_SOURCE_INIT \
  { sizeof(selm_source), NULL, -1, NULL, 0, NULL, NULL, false }
SELM_API selm_status selm_model_open_source(const selm_source* source, const selm_model_options* options,
                                            selm_model** model);
SELM_API void selm_model_free(selm_model* model); /* after its sessions; NULL is allowed */

typedef struct selm_model_info {
  size_t struct_size;
  const char* architecture;
  const char* isa;
  uint32_t n_vocab, n_layer, n_embd, n_head, n_head_kv, n_ff, n_ctx_train;
  uint64_t n_params, file_bytes, weight_bytes; /* weight_bytes: read for each decoded token */
} selm_model_info;
SELM_API selm_status selm_model_get_info(const selm_model* model, selm_model_info* info);
/* Borrowed; lives as long as the model. */
SELM_API const selm_tokenizer* selm_model_tokenizer(const selm_model* model);

/* ---- Metadata of a file ------------------------------------------------------------------- */

typedef enum selm_meta_type { /* GGUF value types */
                              SELM_META_U8 = 0,
                              SELM_META_I8 = 1,
                              SELM_META_U16 = 2,
                              SELM_META_I16 = 3,
                              SELM_META_U32 = 4,
                              SELM_META_I32 = 5,
                              SELM_META_F32 = 6,
                              SELM_META_BOOL = 7,
                              SELM_META_STRING = 8,
                              SELM_META_U64 = 10,
                              SELM_META_I64 = 11,
                              SELM_META_F64 = 12
} selm_meta_type;
typedef struct selm_meta {
  size_t struct_size;
  const char* key; /* key_length bytes, not NUL-terminated */
  size_t key_length;
  selm_meta_type type; /* of the value or of the array's elements */
  bool is_array;
  uint64_t count;   /* 1 for a single value */
  const void* data; /* numbers, little-endian, possibly unaligned; NULL for strings */
} selm_meta;
SELM_API size_t selm_meta_count(const selm_model* model);
SELM_API selm_status selm_meta_get(const selm_model* model, size_t index, selm_meta* meta);
SELM_API selm_status selm_meta_string(const selm_model* model, size_t index, uint64_t element,
                                      const char** text, size_t* length);

/* ---- Tokenizer ------------------------------------------------------------------------------ */

/* From any GGUF file with a vocabulary, tensors or not. Free with selm_tokenizer_free. */
SELM_API selm_status selm_tokenizer_open(const char* path, selm_tokenizer** tokenizer);
SELM_API void selm_tokenizer_free(selm_tokenizer* tokenizer);

/* Writes at most `capacity` ids; *n_tokens is always the full count. If it exceeds capacity the
 * status is SELM_ERROR_BUFFER_TOO_SMALL: call again with that room. tokens NULL: only the count. */
SELM_API selm_status selm_tokenize(const selm_tokenizer* tokenizer, const char* text, size_t length,
                                   bool add_special, bool parse_special, selm_token* tokens, size_t capacity,
                                   size_t* n_tokens);
/* Bytes of the tokens, raw: may hold invalid UTF-8. Same rule for capacity. */
SELM_API selm_status selm_detokenize(const selm_tokenizer* tokenizer, const selm_token* tokens,
                                     size_t n_tokens, bool special, char* text, size_t capacity,
                                     size_t* length);

typedef struct selm_vocab_info {
  size_t struct_size;
  const char* model; /* "llama" or "gpt2" */
  const char* pre;   /* "" if the file has none */
  uint32_t size;
  selm_token bos, eos, eot, eom, unknown, padding; /* -1: none */
  bool add_bos, add_eos, add_space_prefix;
} selm_vocab_info;
SELM_API selm_status selm_vocab_get_info(const selm_tokenizer* tokenizer, selm_vocab_info* info);
SELM_API bool selm_token_is_end(const selm_tokenizer* tokenizer, selm_token token);
/* The token as the file writes it; borrowed, not NUL-terminated. type: tokenizer.ggml.token_type. */
SELM_API selm_status selm_token_get(const selm_tokenizer* tokenizer, selm_token token, const char** text,
                                    size_t* length, int32_t* type);

/* ---- Conversations ---------------------------------------------------------------------------- */

typedef struct selm_chat_message {
  const char* role; /* "system", "user", "assistant"; ends in NUL, like the content */
  const char* content;
} selm_chat_message;
typedef struct selm_chat_options {
  size_t struct_size;
  /* NULL: what the file's template is recognised as. "chatml", "llama2", "llama3", "gemma", "mistral",
   * "mistral3", "phi3", "zephyr" */
  const char* family;
  bool begin_reply; /* as a model is asked for its reply; else the conversation ends with its last message */
} selm_chat_options;
#define SELM_CHAT_OPTIONS_INIT \
  { sizeof(selm_chat_options), NULL, true }
/* Messages as the text that the model was trained to continue: to be tokenized with add_special false and
 * parse_special true. Control tokens that are written in what others than the assistant say are made harmless
 * by a zero-width space. The template of a file is recognised, never run: where its family is unknown the
 * status is SELM_ERROR_UNSUPPORTED. options may be NULL. The rule for capacity is selm_tokenize's; the text
 * has no NUL at its end. */
SELM_API selm_status selm_chat_format(const selm_model* model, const selm_chat_options* options,
                                      const selm_chat_message* messages, size_t n_messages, char* text,
                                      size_t capacity, size_t* length);

/* ---- Session: one sequence, its cache, its threads ------------------------------------------ */

/* How the cache holds keys and values; Q8_0 takes about half of F16 and needs heads of whole 32s. */
typedef enum selm_kv_type { SELM_KV_F16 = 0, SELM_KV_F32 = 1, SELM_KV_Q8_0 = 2 } selm_kv_type;
/* Where a session's cache and scratch memory comes from: allocate gives memory at that boundary (a power of
 * two) or NULL, release gets back what it gave with the size that was asked for. Called while a session is
 * made and freed, never while it works; by one thread at a time for each session. */
typedef struct selm_allocator {
  void* (*allocate)(void* user, size_t size, size_t alignment);
  void (*release)(void* user, void* memory, size_t size);
  void* user;
} selm_allocator;
typedef struct selm_session_options {
  size_t struct_size;
  uint32_t context; /* positions; 0: what the model was trained with, at most 4096 */
  uint32_t threads; /* 0: the cores this process may use */
  uint32_t batch;   /* tokens evaluated together; 0: 256 */
  selm_kv_type kv_type;
  uint32_t exact;           /* not 0: prompts give the bits of single tokens also where pieces of more than 16
                               have faster arithmetic of their own */
  uint64_t memory_limit;    /* bytes of cache and scratch; a plan of more is SELM_ERROR_OUT_OF_MEMORY before
                               anything is allocated. 0: no limit */
  selm_allocator allocator; /* all zero: the system's */
  selm_log log;
} selm_session_options;
#define SELM_SESSION_OPTIONS_INIT                                                                \
  {                                                                                              \
    sizeof(selm_session_options), 0, 0, 0, SELM_KV_F16, 0, 0, {NULL, NULL, NULL}, { NULL, NULL } \
  }

typedef struct selm_memory_plan {
  size_t struct_size;
  uint64_t weights_mapped; /* file-backed, shared between processes */
  uint64_t kv_bytes;       /* allocated when the session is made */
  uint64_t scratch_bytes;  /* likewise */
} selm_memory_plan;
/* Exact bytes, without allocating. */
SELM_API selm_status selm_session_plan(const selm_model* model, const selm_session_options* options,
                                       selm_memory_plan* plan);
SELM_API selm_status selm_session_create(selm_model* model, const selm_session_options* options,
                                         selm_session** session);
SELM_API void selm_session_free(selm_session* session);

typedef enum selm_logits { SELM_LOGITS_NONE = 0, SELM_LOGITS_LAST = 1, SELM_LOGITS_ALL = 2 } selm_logits;
/* Appends tokens. logits: where NONE, may be NULL; LAST writes [n_vocab]; ALL writes [n_tokens, n_vocab].
 * On any error the session is as before the call. */
SELM_API selm_status selm_session_eval(selm_session* session, const selm_token* tokens, size_t n_tokens,
                                       selm_logits which, float* logits);
/* Mean over the tokens of the final hidden states (after the output norm), L2-normalised: [n_embd].
 * Runs on an empty session and leaves it empty. */
SELM_API selm_status selm_session_embed(selm_session* session, const selm_token* tokens, size_t n_tokens,
                                        float* embedding);
typedef struct selm_session_info {
  size_t struct_size;
  uint32_t context, threads;
  uint32_t position;    /* tokens held */
  uint64_t state_bytes; /* cache in use now */
} selm_session_info;
SELM_API selm_status selm_session_get_info(const selm_session* session, selm_session_info* info);
/* Forgets everything after the first n_tokens; more than that where layers whose state does not grow with the
 * text (`selm` files) cannot go back so far: selm_session_info.position tells, and what is missing is to be
 * evaluated again. They can go back by 32 tokens, to where a long eval or a reply began, and to 0. */
SELM_API selm_status selm_session_truncate(selm_session* session, uint32_t n_tokens);
/* Snapshots: the session's state as bytes, for a session of the same model and kv_type (whatever its context,
 * batch and threads) to go on from exactly as this one would. It holds the tokens and what was computed of
 * them; a file is its owner's alone to read. data NULL: only the size, as of the tokens held now. Experts
 * catch up first, which a cancel or deadline stops. */
SELM_API selm_status selm_session_save(selm_session* session, void* data, size_t capacity, size_t* size);
/* The file is replaced whole, or on an error (SELM_ERROR_IO: a full disk, ...) not at all. */
SELM_API selm_status selm_session_save_file(selm_session* session, const char* path);
/* In place of what the session holds. SELM_ERROR_FORMAT: damaged, or no snapshot; SELM_ERROR_UNSUPPORTED: of
 * another model, kv_type or version; SELM_ERROR_CONTEXT_FULL: it does not fit. On any error the session is as
 * before the call. */
SELM_API selm_status selm_session_restore(selm_session* session, const void* data, size_t size);
SELM_API selm_status selm_session_restore_file(selm_session* session, const char* path);
/* Another session in the same state, with the same adapters and expert asked for, which then goes its own
 * way. options NULL: those of `session`. */
SELM_API selm_status selm_session_fork(selm_session* session, const selm_session_options* options,
                                       selm_session** fork);
/* Experts of a `selm` file speak token by token as their scores say, or one by name at every token from now
 * on (NULL: by the scores again). Fails where the model has no such expert. */
SELM_API selm_status selm_session_set_expert(selm_session* session, const char* name);
/* Who spoke after the token at `position`, by place in `selm.expert.names`; -1: nobody, or no experts. */
SELM_API int32_t selm_session_speaker(const selm_session* session, uint32_t position);
/* A LoRA adapter in llama.cpp's file format. Fails where it is for another base: a tensor that does not fit
 * is named with both shapes. Freed before the model, and taken from its sessions before. */
SELM_API selm_status selm_adapter_open(const selm_model* model, const char* path, selm_adapter** adapter);
SELM_API void selm_adapter_free(selm_adapter* adapter);
typedef struct selm_adapter_info {
  size_t struct_size;
  const char* name; /* general.name; "" if the file has none; lives as long as the adapter, like the next */
  const char*
      base_sha256; /* selm.adapter.base_sha256: of the model's file it was trained on; "" if unknown */
  float alpha;     /* 0: none, the pairs are added as they are */
  uint32_t rank;   /* the largest */
  uint64_t bytes;  /* of its tensors */
} selm_adapter_info;
SELM_API selm_status selm_adapter_get_info(const selm_adapter* adapter, selm_adapter_info* info);
/* What is added to the model's weights for the tokens to come, each adapter by its scale (1: as trained); up
 * to 8, n = 0 takes them away. Tokens that are held keep what was made of them. */
SELM_API selm_status selm_session_set_adapters(selm_session* session, const selm_adapter* const* adapters,
                                               const float* scales, size_t n);
/* The tokens held, for prefix reuse: borrowed until the next call that changes the session. */
SELM_API const selm_token* selm_session_tokens(const selm_session* session, size_t* n_tokens);
/* Stops the running (or next) eval or generation within one layer; from any thread. */
SELM_API void selm_session_cancel(selm_session* session);
/* Clears a cancel that has not been consumed; so does selm_generation_create. */
SELM_API void selm_session_clear_cancel(selm_session* session);
/* Evals fail with SELM_ERROR_DEADLINE once this many milliseconds from now have passed; 0: no deadline. */
SELM_API void selm_session_set_deadline(selm_session* session, uint32_t milliseconds);

/* ---- Generation ------------------------------------------------------------------------------ */

typedef struct selm_logit_bias {
  selm_token token;
  float bias;
} selm_logit_bias;
typedef struct selm_sampling {
  size_t struct_size;
  float temperature;       /* 0: greedy */
  uint32_t top_k;          /* 0: off */
  float top_p;             /* 1: off */
  float min_p;             /* 0: off */
  float typical_p;         /* 1: off */
  float repeat_penalty;    /* 1: off */
  float frequency_penalty; /* 0: off */
  float presence_penalty;  /* 0: off */
  uint32_t penalty_last_n; /* tokens looked back at */
  uint64_t seed;           /* same seed, same text; 0 is a seed like any other: draw one for variety */
  const selm_logit_bias* bias;
  size_t n_bias;
} selm_sampling;
/* The order is: bias, penalties, top-k, typical, top-p, min-p, temperature. */
#define SELM_SAMPLING_INIT \
  { sizeof(selm_sampling), 0.7f, 40, 0.95f, 0.05f, 1.0f, 1.0f, 0.0f, 0.0f, 64, 0, NULL, 0 }

/* Picks one token from logits [n_vocab] (left unchanged). history: for the penalties. */
SELM_API selm_status selm_sample(const selm_sampling* sampling, const float* logits, size_t n_vocab,
                                 const selm_token* history, size_t n_history, uint64_t draw,
                                 selm_token* token);

/* What a reply has to be, byte by byte. One grammar serves any number of replies, also at once; what it has
 * found out about the vocabulary is kept. */
typedef enum selm_grammar_kind {
  /* Drafts 4 to 2020-12. Every reply is JSON that the schema accepts; what cannot be held to while writing is
   * refused by name (SELM_ERROR_UNSUPPORTED), never left out. */
  SELM_GRAMMAR_JSON_SCHEMA = 0,
  SELM_GRAMMAR_GBNF = 1 /* llama.cpp's; the rule `root` */
} selm_grammar_kind;
/* For replies of the tokenizer's model; freed before the tokenizer or model, after its generations.
 * SELM_ERROR_INVALID_ARGUMENT: the text is no grammar, with the place, or nothing can be written. */
SELM_API selm_status selm_grammar_create(const selm_tokenizer* tokenizer, selm_grammar_kind kind,
                                         const char* text, size_t length, selm_grammar** grammar);
SELM_API void selm_grammar_free(selm_grammar* grammar);
/* For a sampler of your own: a text that is held to a grammar token by token. Freed before the grammar; used
 * by one thread at a time. */
SELM_API selm_status selm_matcher_create(const selm_grammar* grammar, selm_matcher** matcher);
SELM_API void selm_matcher_free(selm_matcher* matcher);
/* In logits[n_vocab], what may not come next becomes minus infinity; end tokens stay where the text may end.
 */
SELM_API selm_status selm_matcher_mask(selm_matcher* matcher, float* logits);
/* Goes on. SELM_ERROR_INVALID_ARGUMENT, and it stays where it was, where the token may not come next. */
SELM_API selm_status selm_matcher_read(selm_matcher* matcher, selm_token token);
SELM_API bool selm_matcher_complete(const selm_matcher* matcher); /* the text may end here */

/* How tokens may be guessed ahead. No choice changes a reply, only its speed. */
typedef enum selm_draft {
  SELM_DRAFT_AUTO = 0, /* by lookup, and by exits where the model has them */
  SELM_DRAFT_OFF = 1,
  SELM_DRAFT_EXIT = 2,   /* through the lower layers; an error where no exits are trained */
  SELM_DRAFT_LOOKUP = 3, /* from where the last tokens stood before */
  /* Not verified where an exit is sure enough: the reply may differ from the whole model's, by no more than
   * the file's calibration says. An error where exits are not calibrated for these very weights, or, by
   * the adapter's file, for these with the one adapter that is set. */
  SELM_DRAFT_CALIBRATED = 4
} selm_draft;
typedef struct selm_generation_options {
  size_t struct_size;
  uint32_t max_tokens;     /* 0: until the context is full */
  const char* const* stop; /* stop strings, NUL-terminated; not part of the text */
  size_t n_stop;
  bool ignore_end;   /* go on after the end token (benchmarks) */
  bool special;      /* render control tokens in the text */
  bool reuse_prefix; /* keep what the session already holds of the prompt */
  selm_draft draft;
  /* To calibrate: with SELM_DRAFT_CALIBRATED, this probability instead of the file's threshold, and
   * early_wrong is counted. */
  float exit_threshold;
  const selm_grammar* grammar; /* NULL: anything may be said */
} selm_generation_options;
#define SELM_GENERATION_OPTIONS_INIT \
  { sizeof(selm_generation_options), 0, NULL, 0, false, false, true, SELM_DRAFT_AUTO, 0.0f, NULL }

typedef enum selm_finish {
  SELM_FINISH_NONE = 0, /* still going */
  SELM_FINISH_STOP = 1, /* end token or stop string */
  SELM_FINISH_LENGTH = 2,
  SELM_FINISH_CONTEXT = 3,
  SELM_FINISH_CANCELLED = 4,
  SELM_FINISH_DEADLINE = 5
} selm_finish;

typedef struct selm_generation_stats {
  size_t struct_size;
  uint32_t prompt_tokens; /* of the whole prompt */
  uint32_t cached_tokens; /* of those, found in the session */
  uint32_t tokens;        /* generated, the end token not counted */
  double prompt_seconds, decode_seconds, first_token_seconds;
  selm_finish finish;
  uint32_t decode_steps; /* tokens picked, the end token too, in decode_seconds: speed = steps / seconds */
  uint32_t drafted_tokens, accepted_tokens; /* guessed ahead; of those, right */
  uint32_t early_tokens, early_wrong;       /* kept unverified; of those, not the whole model's choice */
  /* How sure the model was of its tokens, on average, the end token too: the entropy of the next token in
   * nats, and by how much the likeliest was likelier than the second. At temperature 1, before bias,
   * penalties and grammar; where a draft was kept unverified, by its exit. */
  double mean_entropy, mean_margin;
} selm_generation_stats;

/* Starts a reply to the prompt; the first selm_generation_next reads it. The session is lent until
 * the generation is freed, which comes before the session is. Fails with SELM_ERROR_CONTEXT_FULL when the
 * prompt leaves no room. */
SELM_API selm_status selm_generation_create(selm_session* session, const selm_token* prompt, size_t n_prompt,
                                            const selm_sampling* sampling,
                                            const selm_generation_options* options,
                                            selm_generation** generation);
/* One step. *text is the next whole piece of valid UTF-8 (maybe ""), borrowed until the next call,
 * `*finish` NONE while there is more. A cancel or deadline is a finish, not an error; the text so
 * far stays valid. token may be NULL; -1 at the end. */
SELM_API selm_status selm_generation_next(selm_generation* generation, const char** text, size_t* length,
                                          selm_token* token, selm_finish* finish);
SELM_API selm_status selm_generation_get_stats(const selm_generation* generation,
                                               selm_generation_stats* stats);
SELM_API void selm_generation_free(selm_generation* generation);

/* ---- Vectors of texts, for memory --------------------------------------------------------------- */

/* Maps a file of architecture `selm-embedder`: a row of numbers for each token; no network. Another
 * architecture gives SELM_ERROR_UNSUPPORTED: vectors of a model are selm_session_embed. */
SELM_API selm_status selm_embedder_open(const char* path, selm_embedder** embedder);
SELM_API void selm_embedder_free(selm_embedder* embedder);                /* NULL is allowed */
SELM_API uint32_t selm_embedder_dimension(const selm_embedder* embedder); /* numbers of a vector */
/* The sum of the rows of the text's tokens, scaled to length 1: [dimension], the same bits on every run.
 * *found is false, and the vector zeros, where the text has none: no token of it is known. Bytes that
 * are no UTF-8 are left out. Needs little memory and time by length, however long the text. */
SELM_API selm_status selm_embedder_embed(const selm_embedder* embedder, const char* text, size_t length,
                                         float* vector, bool* found);

#ifdef __cplusplus
}
#endif
#endif
