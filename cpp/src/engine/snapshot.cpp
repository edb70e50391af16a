#include "engine/snapshot.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "base/file_bytes.h"
#include "base/hash.h"
#include "base/new_file.h"

namespace selm::engine {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie");

constexpr char kMagic[8] = {'S', 'E', 'L', 'M', 'S', 'N', 'A', 'P'};
constexpr uint32_t kVersion = 1;
constexpr size_t kHashed = 64 * 1024;  // bytes of one link of the checksum
constexpr size_t kSampled = 1024;      // of each piece of a tensor that tells models apart

struct Header {
  char magic[8];
  uint32_t version, kv_type;
  uint64_t model, size, n;
};
static_assert(sizeof(Header) == 40);
constexpr size_t kLeast = sizeof(Header) + sizeof(uint64_t);  // with the checksum

uint64_t checksum(std::span<const std::byte> bytes) {
  uint64_t hash = 0;
  for (; !bytes.empty(); bytes = bytes.subspan(std::min(kHashed, bytes.size())))
    hash = hash64(bytes.first(std::min(kHashed, bytes.size())), hash);
  return hash;
}

uint64_t model_hash(const gguf::File& file) {
  if (file.tensors().empty()) return 0;
  const gguf::Tensor& any = file.tensors().front();
  const std::byte* base = any.data - any.offset;
  uint64_t directory = any.offset;
  for (const gguf::Tensor& t : file.tensors()) directory = std::min(directory, t.offset);
  uint64_t hash = hash64({base, static_cast<size_t>(directory)});
  for (const gguf::Tensor& t : file.tensors()) {
    const std::span<const std::byte> data(t.data, static_cast<size_t>(t.size));
    if (data.size() <= 4 * kSampled) {
      hash = hash64(data, hash);
      continue;
    }
    for (size_t i = 0; i < 4; ++i)
      hash = hash64(data.subspan((data.size() - kSampled) / 3 * i, kSampled), hash);
  }
  return hash;
}

unsigned long long shown(uint64_t n) { return n; }

}  // namespace

// Passes over the state in the order of the format: to count its bytes, to write them, or to read them,
// first without (check) and then with (load) the keys, values and sums.
class Snapshot::Stream {
 public:
  enum class Pass { count, write, check, load };

  static Stream counting() { return Stream(Pass::count); }
  // To the file, or to memory that has room for all.
  Stream(NewFile* file, std::byte* memory) : pass_(Pass::write), file_(file), memory_(memory) {}
  Stream(std::span<const std::byte> input, bool load)
      : pass_(load ? Pass::load : Pass::check), input_(input) {}

  bool reads() const { return pass_ == Pass::check || pass_ == Pass::load; }
  uint64_t bytes() const { return bytes_; }

  // What decides on what follows.
  template <class T>
  Status number(T& value) {
    return transfer(reinterpret_cast<std::byte*>(&value), sizeof(T), true);
  }
  Status numbers(std::byte* data, size_t n) { return transfer(data, n, true); }
  Status content(std::byte* data, size_t n) { return transfer(data, n, pass_ != Pass::check); }

  // After all is written: the rest, and the checksum.
  Status finish() {
    SELM_TRY(flush());
    const uint64_t hash = hash_;
    std::memcpy(buffer_.data(), &hash, sizeof hash);
    buffered_ = sizeof hash;
    return flush();
  }
  // After all is read: nothing is left.
  Status end() const {
    return input_.empty() ? Status()
                          : error(Code::format, "the snapshot holds %zu bytes too many", input_.size());
  }

 private:
  explicit Stream(Pass pass) : pass_(pass) {}

  Status transfer(std::byte* data, size_t n, bool copy) {
    bytes_ += n;
    if (pass_ == Pass::count) return {};
    if (pass_ == Pass::write) return put({data, n});
    if (n > input_.size()) return error(Code::format, "the snapshot ends within its state");
    if (copy && n > 0) std::memcpy(data, input_.data(), n);
    input_ = input_.subspan(n);
    return {};
  }

  Status put(std::span<const std::byte> bytes) {
    if (buffer_.empty()) buffer_.resize(kHashed);
    while (!bytes.empty()) {
      const size_t n = std::min(bytes.size(), kHashed - buffered_);
      std::memcpy(buffer_.data() + buffered_, bytes.data(), n);
      buffered_ += n;
      bytes = bytes.subspan(n);
      if (buffered_ == kHashed) SELM_TRY(flush());
    }
    return {};
  }

  Status flush() {
    const std::span<const std::byte> bytes(buffer_.data(), std::exchange(buffered_, 0));
    if (bytes.empty()) return {};
    hash_ = hash64(bytes, hash_);
    if (file_ != nullptr) return file_->write(bytes);
    std::memcpy(memory_, bytes.data(), bytes.size());
    memory_ += bytes.size();
    return {};
  }

  Pass pass_;
  NewFile* file_ = nullptr;
  std::byte* memory_ = nullptr;
  std::span<const std::byte> input_;
  uint64_t bytes_ = 0, hash_ = 0;
  std::vector<std::byte> buffer_;
  size_t buffered_ = 0;
};

// While it lives, the sums of far tokens are those that a snapshot keeps; then they are as before.
class Snapshot::Settled {
 public:
  static Result<std::unique_ptr<Settled>> make(Session& session) {
    auto memory = AlignedBuffer::make(session.bounded_.size());
    if (!memory) return error(Code::out_of_memory, "no memory for a snapshot");
    std::unique_ptr<Settled> settled(new Settled(session, std::move(*memory)));
    for (size_t i = 0; i < session.states_.size(); ++i) {
      Session::LayerState& state = session.states_[i];
      if (state.far) {
        state.far->settle_both(session.kernels_, session.layer_of(i), state.cache, session.tokens_.size(),
                               session.scratch_of(0));
      }
    }
    return settled;
  }
  ~Settled() {
    if (memory_.size() > 0) std::memcpy(session_.bounded_.data(), memory_.data(), memory_.size());
    session_.states_ = std::move(states_);
  }
  Settled(const Settled&) = delete;
  Settled& operator=(const Settled&) = delete;

 private:
  Settled(Session& session, AlignedBuffer memory)
      : session_(session), states_(session.states_), memory_(std::move(memory)) {
    if (memory_.size() > 0) std::memcpy(memory_.data(), session.bounded_.data(), memory_.size());
  }

  Session& session_;
  std::vector<Session::LayerState> states_;
  AlignedBuffer memory_;
};

Status Snapshot::walk_layer(Session& session, Session::LayerState& state, size_t index, size_t n,
                            Stream& stream) {
  const model::Hparams& h = session.model_.hparams();
  const auto left = [&](size_t position) {  // tokens before this have left the window of the token there
    return position + 1 > h.selm.window ? position + 1 - h.selm.window : 0;
  };
  uint64_t first = 0;
  uint32_t both = 0;
  const size_t end = state.far ? state.far->sums_end(n) : 0;
  if (!state.grows) {
    const size_t oldest = state.cache.oldest();
    if (!stream.reads()) {
      both = end != 0 && oldest <= end - attention::kBlock && state.far->holds(end - attention::kBlock);
      const size_t wanted =
          state.far ? end - both * attention::kBlock : left(n - std::min(n, attention::kBlock));
      first = std::max(oldest, wanted);
    }
    SELM_TRY(stream.number(first));
    if (state.far) SELM_TRY(stream.number(both));
  }
  if (stream.reads()) {
    if (both > 1 || both * attention::kBlock > end || first > n ||
        first > (state.far ? end - both * attention::kBlock : left(n)) ||
        n - first > state.cache.shape().positions) {
      return error(Code::format, "the snapshot's layer %zu holds the wrong positions", index);
    }
    state.cache.hold(static_cast<size_t>(first), n);
    if (state.far) state.far->place(n, both != 0);
  }
  SELM_TRY(state.cache.each_row(static_cast<size_t>(first), n,
                                [&](std::byte* rows, size_t bytes) { return stream.content(rows, bytes); }));
  for (size_t head = 0; state.far && head < state.far->n_heads(); ++head) {
    for (uint32_t older = 0; older <= both; ++older) {
      const attention::Far::Sums sums = state.far->sums_of(head, end - older * attention::kBlock);
      SELM_TRY(stream.number(*sums.scale));
      SELM_TRY(stream.content(reinterpret_cast<std::byte*>(sums.values.data()), sums.values.size_bytes()));
    }
  }
  return {};
}

Status Snapshot::walk(Session& session, std::vector<Session::LayerState>& states, std::span<Token> tokens,
                      std::span<int8_t> speakers, Stream& stream) {
  SELM_TRY(stream.numbers(reinterpret_cast<std::byte*>(tokens.data()), tokens.size_bytes()));
  SELM_TRY(stream.numbers(reinterpret_cast<std::byte*>(speakers.data()), speakers.size()));
  for (size_t i = 0; i < states.size(); ++i)
    SELM_TRY(walk_layer(session, states[i], i, tokens.size(), stream));
  return {};
}

uint64_t Snapshot::fingerprint(Session& session) {
  if (!session.fingerprint_) session.fingerprint_ = model_hash(session.model_.file());
  return *session.fingerprint_;
}

// The session is settled. size: of the whole, or 0 while that is being counted.
Status Snapshot::write(Session& session, Stream& stream, uint64_t size) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.kv_type = static_cast<uint32_t>(session.options_.kv_type);
  header.model = fingerprint(session);
  header.size = size;
  header.n = session.tokens_.size();
  SELM_TRY(stream.number(header));
  const std::span<int8_t> speakers(session.speakers_);
  return walk(session, session.states_, session.tokens_,
              speakers.first(speakers.empty() ? 0 : session.tokens_.size()), stream);
}

Status Snapshot::save(Session& session, std::byte* data, size_t capacity, size_t* size) {
  SELM_TRY(session.catch_up_all());  // which changes no result
  SELM_ASSIGN(const auto settled, Settled::make(session));
  Stream counted = Stream::counting();
  SELM_TRY(write(session, counted, 0));
  *size = static_cast<size_t>(counted.bytes()) + sizeof(uint64_t);
  if (data == nullptr) return {};
  if (*size > capacity)
    return error(Code::buffer_too_small, "the buffer takes %zu bytes; %zu are needed", capacity, *size);
  Stream stream(nullptr, data);
  SELM_TRY(write(session, stream, *size));
  return stream.finish();
}

Status Snapshot::save_file(Session& session, const std::string& path) {
  SELM_TRY(session.catch_up_all());  // which changes no result
  SELM_ASSIGN(NewFile file, NewFile::create(path));
  SELM_ASSIGN(const auto settled, Settled::make(session));
  Stream counted = Stream::counting();
  SELM_TRY(write(session, counted, 0));
  Stream stream(&file, nullptr);
  SELM_TRY(write(session, stream, counted.bytes() + sizeof(uint64_t)));
  SELM_TRY(stream.finish());
  return file.commit();
}

// Everything before the tokens, and the checksum of it all.
Status Snapshot::check_header(Session& session, std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof kMagic || std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0)
    return error(Code::format, "this is no snapshot of a session");
  Header header{};
  std::memcpy(&header, bytes.data(), std::min(bytes.size(), sizeof header));
  if (bytes.size() >= sizeof kMagic + sizeof header.version && header.version != kVersion) {
    return error(Code::unsupported, "the snapshot is of version %u; this library reads version %u",
                 header.version, kVersion);
  }
  if (bytes.size() < kLeast || header.size > bytes.size())
    return error(Code::format, "the snapshot is cut short after %zu bytes", bytes.size());
  if (header.size < bytes.size())
    return error(Code::format, "the snapshot should end after %llu bytes, not %zu", shown(header.size),
                 bytes.size());
  uint64_t expected = 0;
  std::memcpy(&expected, bytes.data() + bytes.size() - sizeof expected, sizeof expected);
  if (checksum(bytes.first(bytes.size() - sizeof expected)) != expected)
    return error(Code::format, "the snapshot is damaged: its checksum does not fit its contents");
  if (header.model != fingerprint(session))
    return error(Code::unsupported, "the snapshot is of another model, or of another version of its file");
  const auto own = static_cast<uint32_t>(session.options_.kv_type);
  if (header.kv_type != own) {
    const auto name = [](uint32_t type) { return type == 0 ? "f16" : type == 1 ? "f32" : "q8_0"; };
    return error(Code::unsupported, "the snapshot holds keys and values as %s, this session as %s",
                 name(header.kv_type), name(own));
  }
  if (header.n > session.options_.context) {
    return error(Code::context_full, "the snapshot holds %llu tokens, this context %u positions",
                 shown(header.n), session.options_.context);
  }
  return {};
}

Status Snapshot::restore(Session& session, std::span<const std::byte> bytes) {
  SELM_TRY(check_header(session, bytes));
  Header header{};
  std::memcpy(&header, bytes.data(), sizeof header);
  const std::span<const std::byte> body = bytes.subspan(sizeof header, bytes.size() - kLeast);
  std::vector<Token> tokens(static_cast<size_t>(header.n));
  std::vector<int8_t> speakers(session.speakers_.empty() ? 0 : tokens.size());
  std::vector<Session::LayerState> states = session.states_;
  Stream check(body, false);
  SELM_TRY(walk(session, states, tokens, speakers, check));
  SELM_TRY(check.end());
  for (const Token token : tokens) {
    if (token < 0 || static_cast<uint32_t>(token) >= session.model_.n_vocab())
      return error(Code::format, "the snapshot holds the token %d, which is not in the vocabulary", token);
  }
  for (const int8_t speaker : speakers) {
    if (speaker < -1 || speaker >= static_cast<int>(session.seen_.size()))
      return error(Code::format, "the snapshot names the expert %d, whom the model has not", speaker);
  }
  // From here on nothing can fail.
  Stream load(body, true);
  SELM_TRY(walk(session, states, tokens, speakers, load));
  session.states_ = std::move(states);
  session.tokens_.assign(tokens.begin(), tokens.end());
  std::copy(speakers.begin(), speakers.end(), session.speakers_.begin());
  std::fill(session.seen_.begin(), session.seen_.end(), tokens.size());
  session.trunk_end_ = tokens.size();
  session.trunk_written_ = 0;  // nothing of it is needed: all have seen all
  for (Session::Mark& mark : session.marks_) mark.n = 0;
  session.mark();
  return {};
}

Status Snapshot::restore_file(Session& session, const std::string& path) {
  SELM_ASSIGN(const FileBytes file, FileBytes::open(path));
  return restore(session, file.bytes());
}

Result<std::unique_ptr<Session>> Snapshot::fork(Session& session, const SessionOptions* options) {
  SELM_ASSIGN(auto fork, Session::create(session.model_, options == nullptr ? session.options_ : *options));
  fork->fingerprint_ = fingerprint(session);
  fork->asked_ = session.asked_;
  SELM_TRY(fork->set_adapters(session.adapters_));
  size_t size = 0;
  SELM_TRY(save(session, nullptr, 0, &size));
  auto bytes = AlignedBuffer::make(size);
  if (!bytes) return error(Code::out_of_memory, "no memory for a snapshot of %zu bytes", size);
  SELM_TRY(save(session, bytes->data(), size, &size));
  SELM_TRY(restore(*fork, {bytes->data(), size}));
  return fork;
}

}  // namespace selm::engine
