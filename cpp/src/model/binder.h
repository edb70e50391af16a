// Tensors of a file, by name and with the shape they should have.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "gguf/cursor.h"
#include "gguf/gguf.h"
#include "model/model.h"
#include "quant/dequantize.h"

namespace selm::model {

// Finds tensors by name and checks their shape against what the hyper-parameters promise.
class Binder {
 public:
  // bound: by position in file.tensors(), set for each tensor that was used.
  Binder(const gguf::File& file, std::vector<bool>* bound) : file_(file), bound_(*bound) {}

  Result<Matrix> matrix(const std::string& name, uint64_t rows, uint64_t columns) const {
    const gguf::Tensor* tensor = find(name);
    if (tensor == nullptr) return error(Code::format, "the tensor %s is missing", name.c_str());
    if (tensor->ne[0] != columns || tensor->ne[1] != rows || tensor->ne[2] != 1 || tensor->ne[3] != 1) {
      return mismatch(*tensor, columns, rows);
    }
    return Matrix{tensor->data, tensor->type, static_cast<uint32_t>(rows), static_cast<uint32_t>(columns)};
  }

  // name.lora_a and name.lora_b, or nothing where there is no such tensor.
  Result<LowRank> low_rank(const std::string& name, uint64_t rows, uint64_t columns) const {
    LowRank pair;
    const gguf::Tensor* a = file_.find_tensor(name + ".lora_a");
    if (a == nullptr) return pair;
    SELM_ASSIGN(pair.a, matrix(name + ".lora_a", a->ne[1], columns));
    SELM_ASSIGN(pair.b, matrix(name + ".lora_b", rows, a->ne[1]));
    return pair;
  }

  // A matrix, or its factors. Error: also where both are there.
  Result<Weight> weight(const std::string& name, uint64_t rows, uint64_t columns) const {
    Weight weight;
    SELM_ASSIGN(weight.factors, low_rank(name, rows, columns));
    if (!weight.factors) {
      SELM_ASSIGN(weight.whole, matrix(name, rows, columns));
      return weight;
    }
    if (file_.find_tensor(name) != nullptr) {
      return error(Code::format, "the tensor %s is there whole and as factors", name.c_str());
    }
    weight.whole.rows = static_cast<uint32_t>(rows);
    weight.whole.columns = static_cast<uint32_t>(columns);
    return weight;
  }

  // count matrices [rows, columns] of floats, one after the other.
  Result<Matrix> float_stack(const std::string& name, uint64_t count, uint64_t rows, uint64_t columns) const {
    const gguf::Tensor* tensor = find(name);
    if (tensor == nullptr) return error(Code::format, "the tensor %s is missing", name.c_str());
    if (tensor->ne[0] != columns || tensor->ne[1] != rows || tensor->ne[2] != count || tensor->ne[3] != 1) {
      return mismatch(*tensor, columns, rows, count);
    }
    if (tensor->type != quant::Type::f32) {
      return error(Code::format, "at byte %llu: the tensor %s must be F32",
                   static_cast<unsigned long long>(tensor->offset), name.c_str());
    }
    return Matrix{tensor->data, tensor->type, static_cast<uint32_t>(count * rows),
                  static_cast<uint32_t>(columns)};
  }

  Result<Vector> vector(const std::string& name, uint64_t n) const {
    const gguf::Tensor* tensor = find(name);
    if (tensor == nullptr) return error(Code::format, "the tensor %s is missing", name.c_str());
    if (tensor->ne[0] != n || tensor->ne[1] != 1 || tensor->ne[2] != 1 || tensor->ne[3] != 1) {
      return mismatch(*tensor, n, 1);
    }
    Vector values(static_cast<size_t>(n));
    quant::dequantize_row(tensor->type, tensor->data, values.data(), values.size());
    for (const float value : values) {
      if (!std::isfinite(value)) {
        return error(Code::format, "at byte %llu: the tensor %s holds a value that is not finite",
                     static_cast<unsigned long long>(tensor->offset), name.c_str());
      }
    }
    return values;
  }

  Result<Vector> optional_vector(const std::string& name, uint64_t n) const {
    if (file_.find_tensor(name) == nullptr) return Vector();
    return vector(name, n);
  }

 private:
  static Status mismatch(const gguf::Tensor& tensor, uint64_t ne0, uint64_t ne1, uint64_t ne2 = 1) {
    return error(Code::format,
                 "at byte %llu: the tensor %s has shape [%llu, %llu, %llu, %llu], the model's keys ask for "
                 "[%llu, %llu, %llu]",
                 static_cast<unsigned long long>(tensor.offset), gguf::printable(tensor.name).c_str(),
                 static_cast<unsigned long long>(tensor.ne[0]), static_cast<unsigned long long>(tensor.ne[1]),
                 static_cast<unsigned long long>(tensor.ne[2]), static_cast<unsigned long long>(tensor.ne[3]),
                 static_cast<unsigned long long>(ne0), static_cast<unsigned long long>(ne1),
                 static_cast<unsigned long long>(ne2));
  }

  const gguf::Tensor* find(const std::string& name) const {
    const gguf::Tensor* tensor = file_.find_tensor(name);
    if (tensor != nullptr) bound_[static_cast<size_t>(tensor - file_.tensors().data())] = true;
    return tensor;
  }

  const gguf::File& file_;
  std::vector<bool>& bound_;
};

// A weight that is left out changes what the model says, in silence: better to refuse it.
Status check_all_bound(const gguf::File& file, const std::vector<bool>& bound);

}  // namespace selm::model
