// A session's state as bytes, to go on from exactly as it was: kept in a file, or handed to another
// session (a fork). Little-endian:
//
//   "SELMSNAP", version u32, KV type u32, model u64, bytes of the whole u64, n u64, n tokens (i32)
//   where there are experts, who spoke after each token (i8)
//   for each layer, those of the trunk and then those of each expert
//     of window and performer: the first position that is held, u64
//     of performer: whether there are sums of a block before, u32
//     keys of each KV head, positions [first, n) and then the sinks; values likewise
//     of performer, for each KV head: scale f32 and sums f32; those of a block before likewise
//   checksum u64: XXH64 of each 64 KiB before it, the last one's as the next one's seed
//
// Experts have seen all tokens by then: those that skipped some catch up before they are saved. Which one
// is asked for, and adapters, are not the state's; a fork takes them over.
//
// Only what the tokens need is kept, and by position, so a session of another context, batch, number
// of threads or instruction set may go on from it. Layers whose state does not grow can then take back
// attention::kBlock tokens, as ever, and come back to where they were restored.
//
// The model is told by a hash of its metadata and tensor directory (every byte before the first tensor)
// and of four pieces of 1 KiB of each tensor; smaller tensors count whole. What differs only between
// those pieces, as a single changed weight may, is taken for the same model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "engine/session.h"

namespace selm::engine {

class Snapshot {
 public:
  // Writes it where `capacity` bytes are enough (else Code::buffer_too_small); *size is always what it
  // takes. data nullptr: only the size. What the session says next stays as it is. Errors: out_of_memory;
  // cancelled and deadline while experts catch up.
  static Status save(Session& session, std::byte* data, size_t capacity, size_t* size);
  // The file is replaced whole, or not at all.
  static Status save_file(Session& session, const std::string& path);

  // After an error the session is as before. Errors: format (damaged, or no snapshot), unsupported (of
  // another version, model or KV type), context_full.
  static Status restore(Session& session, std::span<const std::byte> bytes);
  static Status restore_file(Session& session, const std::string& path);

  // A session of its own in the same state. options nullptr: those of `session`.
  static Result<std::unique_ptr<Session>> fork(Session& session, const SessionOptions* options);

 private:
  class Stream;
  class Settled;

  static uint64_t fingerprint(Session& session);
  static Status write(Session& session, Stream& stream, uint64_t size);
  static Status check_header(Session& session, std::span<const std::byte> bytes);
  static Status walk(Session& session, std::vector<Session::LayerState>& states, std::span<Token> tokens,
                     std::span<int8_t> speakers, Stream& stream);
  static Status walk_layer(Session& session, Session::LayerState& state, size_t index, size_t n,
                           Stream& stream);
};

}  // namespace selm::engine
