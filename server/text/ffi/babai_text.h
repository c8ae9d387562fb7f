/* C ABI of the Rust crate in this folder; tokenizer.cc is its only user.
 *
 * Functions that can fail return a babai_text_code and leave words for it with
 * babai_text_last_error(). Slices are borrowed for the call. What an `out` parameter receives is
 * owned by the caller and given back to the matching _free, which takes null and empty too. Handles
 * may be used by any number of threads at once, streams by one at a time. */
#ifndef BABAI_SERVER_TEXT_FFI_BABAI_TEXT_H_
#define BABAI_SERVER_TEXT_FFI_BABAI_TEXT_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct babai_text_tokenizer babai_text_tokenizer;
typedef struct babai_text_template babai_text_template;
typedef struct babai_text_stream babai_text_stream;

typedef enum babai_text_code {
  BABAI_TEXT_OK = 0,
  BABAI_TEXT_INVALID_TOKENIZER = 1,
  BABAI_TEXT_INVALID_TEXT = 2,
  BABAI_TEXT_INVALID_ID = 3,
  BABAI_TEXT_TEMPLATE_FAILED = 4,
  BABAI_TEXT_INTERNAL = 5,
} babai_text_code;

typedef struct babai_text_slice {
  const char* data;
  size_t size;
} babai_text_slice;

typedef struct babai_text_bytes {
  char* data;
  size_t size, capacity;
} babai_text_bytes;

typedef struct babai_text_ids {
  int32_t* data;
  size_t size, capacity;
} babai_text_ids;

/* tokenizer.ggml.* of a GGUF file; absent arrays have size 0, absent ids are negative. */
typedef struct babai_text_gguf {
  babai_text_slice model, pre;
  const babai_text_slice* tokens;
  size_t num_tokens;
  const float* scores;
  size_t num_scores;
  const int32_t* types;
  size_t num_types;
  const babai_text_slice* merges;
  size_t num_merges;
  int32_t bos, eos, unk;
  bool add_bos, add_eos, add_space_prefix;
} babai_text_gguf;

typedef struct babai_text_message {
  babai_text_slice role, content;
} babai_text_message;

typedef struct babai_text_chat {
  const babai_text_message* messages;
  size_t num_messages;
  babai_text_slice bos_token, eos_token;
  bool add_generation_prompt;
} babai_text_chat;

/* Words of this thread's last failure; valid until its next call. */
babai_text_slice babai_text_last_error(void);

babai_text_code babai_text_tokenizer_from_json(babai_text_slice json, babai_text_tokenizer** out);
babai_text_code babai_text_tokenizer_from_gguf(const babai_text_gguf* gguf,
                                               babai_text_tokenizer** out);
void babai_text_tokenizer_free(babai_text_tokenizer* tokenizer);

size_t babai_text_vocab_size(const babai_text_tokenizer* tokenizer);
bool babai_text_is_control(const babai_text_tokenizer* tokenizer, int32_t id);
babai_text_code babai_text_to_json(const babai_text_tokenizer* tokenizer, babai_text_bytes* out);

babai_text_code babai_text_encode(const babai_text_tokenizer* tokenizer, babai_text_slice text,
                                  bool add_special, bool parse_special, babai_text_ids* out);
babai_text_code babai_text_decode(const babai_text_tokenizer* tokenizer, const int32_t* ids,
                                  size_t num_ids, bool skip_special, babai_text_bytes* out);

/* Keeps what it needs of the tokenizer: the handle may be freed first. */
babai_text_code babai_text_stream_new(const babai_text_tokenizer* tokenizer, bool skip_special,
                                      babai_text_stream** out);
babai_text_code babai_text_stream_push(babai_text_stream* stream, int32_t id,
                                       babai_text_bytes* out);
babai_text_code babai_text_stream_flush(babai_text_stream* stream, babai_text_bytes* out);
void babai_text_stream_free(babai_text_stream* stream);

/* A template that does not compile is made all the same, and fails at each use. */
babai_text_code babai_text_template_new(babai_text_slice source, babai_text_template** out);
void babai_text_template_free(babai_text_template* tmpl);
babai_text_code babai_text_chat_encode(const babai_text_template* tmpl,
                                       const babai_text_tokenizer* tokenizer,
                                       const babai_text_chat* chat, babai_text_ids* out);
babai_text_code babai_text_chat_render(const babai_text_template* tmpl,
                                       const babai_text_tokenizer* tokenizer,
                                       const babai_text_chat* chat, babai_text_bytes* out);

/* The two texts of a tokenizer_config.json; empty where the file has none. */
babai_text_code babai_text_config_read(babai_text_slice json, babai_text_bytes* bos_token,
                                       babai_text_bytes* eos_token);
babai_text_code babai_text_config_write(babai_text_slice bos_token, babai_text_slice eos_token,
                                        babai_text_bytes* out);

void babai_text_bytes_free(babai_text_bytes bytes);
void babai_text_ids_free(babai_text_ids ids);

#ifdef __cplusplus
}
#endif

#endif /* BABAI_SERVER_TEXT_FFI_BABAI_TEXT_H_ */
