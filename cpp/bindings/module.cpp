// selm_edge._core: the C API as Python objects, and nothing more. selm_edge/backends/native.py
// gives them the shape that the rest of the package knows; handles.h has what they hold.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/measuring.h"
#include "embedder.h"
#include "generation.h"
#include "handles.h"
#include "selm/selm.h"

namespace py = pybind11;
using namespace py::literals;
using namespace selm_python;

PYBIND11_MODULE(_core, m) {
  m.doc() = "The SELM core, as selm.h has it. Use selm_edge.Model; this is what it is made of.";

  // CoreError(status name, message), e.g. CoreError("format", "at byte 24: ...").
  static py::handle core_error = PyErr_NewException("selm_edge._core.CoreError", PyExc_RuntimeError, nullptr);
  m.attr("CoreError") = core_error;
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const CoreFailure& failure) {
      const py::tuple arguments =
          py::make_tuple(failure.status, text_of(failure.message.data(), failure.message.size()));
      PyErr_SetObject(core_error.ptr(), arguments.ptr());
    }
  });

  m.def("version", &selm_version);
  m.def(
      "isa",
      [] {
        selm_cpu_info info{};
        info.struct_size = sizeof info;
        check(selm_cpu_get_info(&info));
        return std::string(info.isa);
      },
      "The best instruction set here, or SELM_ISA where set and available.");
  m.def(
      "measure_bandwidth",
      [](uint32_t threads) {
        const py::gil_scoped_release release;
        double rate = 0;
        check(selm_measure_bandwidth(threads, &rate));
        return rate;
      },
      "threads"_a = 0, "Read bandwidth in GB/s of that many threads (0: all); about half a second.");
  py::class_<Floats>(m, "Floats", py::buffer_protocol(), "float32, [n] or [rows, columns].")
      .def_buffer(&Floats::buffer)
      .def("view", [](const py::object& self) { return py::memoryview(self); });

  py::class_<ModelInfo>(m, "ModelInfo")
      .def_readonly("architecture", &ModelInfo::own_architecture)
      .def_readonly("isa", &ModelInfo::own_isa)
      .def_readonly("n_vocab", &ModelInfo::n_vocab)
      .def_readonly("n_layer", &ModelInfo::n_layer)
      .def_readonly("n_embd", &ModelInfo::n_embd)
      .def_readonly("n_head", &ModelInfo::n_head)
      .def_readonly("n_head_kv", &ModelInfo::n_head_kv)
      .def_readonly("n_ff", &ModelInfo::n_ff)
      .def_readonly("n_ctx_train", &ModelInfo::n_ctx_train)
      .def_readonly("n_params", &ModelInfo::n_params)
      .def_readonly("file_bytes", &ModelInfo::file_bytes)
      .def_readonly("weight_bytes", &ModelInfo::weight_bytes);

  py::class_<VocabInfo>(m, "VocabInfo")
      .def_readonly("model", &VocabInfo::own_model)
      .def_readonly("pre", &VocabInfo::own_pre)
      .def_readonly("size", &VocabInfo::size)
      .def_readonly("bos", &VocabInfo::bos)
      .def_readonly("eos", &VocabInfo::eos)
      .def_readonly("eot", &VocabInfo::eot)
      .def_readonly("eom", &VocabInfo::eom)
      .def_readonly("unknown", &VocabInfo::unknown)
      .def_readonly("padding", &VocabInfo::padding)
      .def_readonly("add_bos", &VocabInfo::add_bos)
      .def_readonly("add_eos", &VocabInfo::add_eos)
      .def_readonly("add_space_prefix", &VocabInfo::add_space_prefix);

  py::class_<Tokenizer>(m, "Tokenizer")
      .def(py::init<const Path&>(), "path"_a)
      .def("encode", &Tokenizer::encode, "text"_a, "add_special"_a, "parse_special"_a)
      .def("decode", &Tokenizer::decode, "tokens"_a, "special"_a)
      .def_property_readonly("info", &Tokenizer::info)
      .def("is_end", &Tokenizer::is_end, "token"_a)
      .def("token", &Tokenizer::token, "token"_a)
      .def("control_tokens", &Tokenizer::control_tokens);

  py::class_<Model>(m, "Model")
      .def(py::init<const Path&, bool, const std::optional<std::string>&>(), "path"_a, py::kw_only(),
           "check_weights"_a = false, "isa"_a = py::none())
      .def_property_readonly("info", &Model::info)
      .def_property_readonly("closed", &Model::closed)
      .def("tokenizer", &Model::tokenizer)
      .def("chat_format", &Model::chat_format, "messages"_a, py::kw_only(), "family"_a = py::none(),
           "begin_reply"_a = true)
      .def("meta_index", &Model::meta_index)
      .def("meta_value", &Model::meta_value, "index"_a)
      .def("close", &Model::close);

  py::class_<Adapter>(m, "Adapter")
      .def(py::init<const Model&, const Path&>(), "model"_a, "path"_a)
      .def_property_readonly("name", [](const Adapter& a) { return std::string(a.info().name); })
      .def_property_readonly("base_sha256",
                             [](const Adapter& a) { return std::string(a.info().base_sha256); })
      .def_property_readonly("rank", [](const Adapter& a) { return a.info().rank; })
      .def_property_readonly("bytes", [](const Adapter& a) { return a.info().bytes; });

  py::class_<Session>(m, "Session")
      .def(py::init<const Model&, uint32_t, uint32_t, uint32_t, const std::string&, bool>(), "model"_a,
           py::kw_only(), "context"_a = 0, "threads"_a = 0, "batch"_a = 0, "kv_type"_a = "f16",
           "exact"_a = false)
      .def("eval", &Session::eval, "tokens"_a, "logits"_a = "all")
      .def("embed", &Session::embed, "tokens"_a)
      .def("set_expert", &Session::set_expert, "name"_a)
      .def("set_adapters", &Session::set_adapters, "adapters"_a, "Pairs of an adapter and its scale.")
      .def("speaker", &Session::speaker, "position"_a)
      .def("truncate", &Session::truncate, "length"_a, "The tokens that are left.")
      .def("tokens", &Session::tokens)
      .def("snapshot", &Session::snapshot)
      .def("save", &Session::save, "path"_a)
      .def("restore", &Session::restore, "snapshot"_a)
      .def("restore_file", &Session::restore_file, "path"_a)
      .def("fork", &Session::fork)
      .def("cancel", &Session::cancel)
      .def("clear_cancel", &Session::clear_cancel)
      .def("set_deadline", &Session::set_deadline, "milliseconds"_a)
      .def_property_readonly("context", &Session::context)
      .def_property_readonly("threads", &Session::threads)
      .def_property_readonly("position", &Session::position)
      .def_property_readonly("state_bytes", &Session::state_bytes)
      .def_property_readonly("closed", &Session::closed)
      .def("close", &Session::close);

  py::class_<selm_sampling>(m, "Sampling")
      .def(py::init([] {
        const selm_sampling defaults = SELM_SAMPLING_INIT;
        return defaults;
      }))
      .def_readwrite("temperature", &selm_sampling::temperature)
      .def_readwrite("top_k", &selm_sampling::top_k)
      .def_readwrite("top_p", &selm_sampling::top_p)
      .def_readwrite("min_p", &selm_sampling::min_p)
      .def_readwrite("typical_p", &selm_sampling::typical_p)
      .def_readwrite("repeat_penalty", &selm_sampling::repeat_penalty)
      .def_readwrite("frequency_penalty", &selm_sampling::frequency_penalty)
      .def_readwrite("presence_penalty", &selm_sampling::presence_penalty)
      .def_readwrite("penalty_last_n", &selm_sampling::penalty_last_n)
      .def_readwrite("seed", &selm_sampling::seed);

  py::class_<selm_generation_stats>(m, "Stats")
      .def_readonly("prompt_tokens", &selm_generation_stats::prompt_tokens)
      .def_readonly("cached_tokens", &selm_generation_stats::cached_tokens)
      .def_readonly("tokens", &selm_generation_stats::tokens)
      .def_readonly("prompt_seconds", &selm_generation_stats::prompt_seconds)
      .def_readonly("decode_seconds", &selm_generation_stats::decode_seconds)
      .def_readonly("first_token_seconds", &selm_generation_stats::first_token_seconds)
      .def_readonly("decode_steps", &selm_generation_stats::decode_steps)
      .def_readonly("drafted_tokens", &selm_generation_stats::drafted_tokens)
      .def_readonly("accepted_tokens", &selm_generation_stats::accepted_tokens)
      .def_readonly("early_tokens", &selm_generation_stats::early_tokens)
      .def_readonly("early_wrong", &selm_generation_stats::early_wrong)
      .def_readonly("mean_entropy", &selm_generation_stats::mean_entropy)
      .def_readonly("mean_margin", &selm_generation_stats::mean_margin)
      .def_property_readonly("finish",
                             [](const selm_generation_stats& s) { return static_cast<int>(s.finish); });

  py::class_<Grammar>(m, "Grammar")
      .def(py::init<const Tokenizer&, const std::string&, const std::string&>(), "tokenizer"_a, "kind"_a,
           "text"_a);

  py::class_<Matcher>(m, "Matcher")
      .def(py::init<const Grammar&>(), "grammar"_a)
      .def("allowed", &Matcher::allowed,
           "[n_vocab] bytes: 1 where a token may come next; end tokens where the text may end.")
      .def("mask", &Matcher::mask, "logits"_a, "The same on [n_vocab] floats: minus infinity where not.")
      .def("read", &Matcher::read, "token"_a,
           "CoreError, and it stays where it was, where that may not come.")
      .def_property_readonly("complete", &Matcher::complete);

  py::class_<Generation>(m, "Generation")
      .def(py::init<const Session&, const Tokens&, selm_sampling, const std::map<selm_token, float>&,
                    const std::vector<std::string>&, uint32_t, bool, bool, bool, const std::string&, float,
                    const std::optional<Grammar>&>(),
           "session"_a, "prompt"_a, "sampling"_a, py::kw_only(),
           "logit_bias"_a = std::map<selm_token, float>(), "stop"_a = std::vector<std::string>(),
           "max_tokens"_a = 0, "ignore_end"_a = false, "special"_a = false, "reuse_prefix"_a = true,
           "draft"_a = "auto", "exit_threshold"_a = 0.0f, "grammar"_a = py::none())
      .def("next", &Generation::next, "(piece of text, its token or -1, finish or 0 while there is more)")
      .def_property_readonly("stats", &Generation::stats)
      .def("cancel", &Generation::cancel)
      .def("close", &Generation::close);

  add_embedder(m);

  m.def(
      "dequantize",
      [](uint32_t type, const py::bytes& data, size_t n) {
        const std::string blocks = data;
        auto out = std::make_unique<Floats>(n);
        check(selm_dequantize(type, blocks.data(), blocks.size(), out->data(), n));
        return out;
      },
      "type"_a, "data"_a, "n"_a, "n float32 from the blocks of a GGUF type.");
  m.def(
      "matmul",
      [](uint32_t type, const py::bytes& weights, size_t rows, size_t n, const py::bytes& activations,
         size_t columns, const std::optional<std::string>& isa) {
        const std::string blocks = weights, inputs = activations;
        if (columns != 0 && inputs.size() / sizeof(float) / columns < n)
          fail(SELM_ERROR_INVALID_ARGUMENT, "activations: too few");
        std::vector<float> values(inputs.size() / sizeof(float));
        std::memcpy(values.data(), inputs.data(), values.size() * sizeof(float));
        auto out = std::make_unique<Floats>(columns, rows);
        const py::gil_scoped_release release;
        check(selm_matmul(isa ? isa->c_str() : nullptr, type, blocks.data(), blocks.size(), rows, n,
                          values.data(), columns, out->data()));
        return out;
      },
      "type"_a, "weights"_a, "rows"_a, "n"_a, "activations"_a, "columns"_a, "isa"_a = py::none(),
      "[columns, rows] = activations [columns, n] (float32 bytes) times weights [rows, n] (blocks of a GGUF "
      "type).");
  m.def(
      "sample",
      [](const selm_sampling& sampling, const std::vector<float>& logits, const Tokens& history,
         uint64_t draw) {
        selm_token token = -1;
        check(selm_sample(&sampling, logits.data(), logits.size(), history.data(), history.size(), draw,
                          &token));
        return token;
      },
      "sampling"_a, "logits"_a, "history"_a = Tokens(), "draw"_a = 0);
}
