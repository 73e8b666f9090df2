// What the backwards of vocab_topk and vocab_pool share.
#pragma once
#include "cpu/vocab_head.h"

namespace stair {

// Rows of hidden as a matrix of tokens: where a row's tokens start, and how many they are.
class TokenIndex {
 public:
  TokenIndex(const Tensor& hidden, const std::optional<Tensor>& cu_seqlens)
      : L_(hidden.dim() == 3 ? hidden.size(1) : 0),
        bounds_(cu_seqlens ? cu_seqlens->const_data_ptr<int32_t>() : nullptr),
        stride_(cu_seqlens ? cu_seqlens->stride(0) : 0) {}
  int64_t first(int64_t row) const { return bounds_ ? bounds_[row * stride_] : row * L_; }
  int64_t count(int64_t row) const { return bounds_ ? first(row + 1) - first(row) : L_; }

 private:
  int64_t L_;
  const int32_t* bounds_;
  int64_t stride_;
};

// A gradient [rows, D] that is made a few rows at a time: they are summed in float32 and written once in its dtype.
class GradRows {
 public:
  explicit GradRows(const Tensor& grad)
      : out_(static_cast<char*>(grad.mutable_data_ptr())), dtype_(dtype_of(grad)), D_(grad.size(grad.dim() - 1)) {}

  // One thread's sums of rows [first, first + count), zero to begin with.
  class Sums {
   public:
    explicit Sums(const GradRows& grad) : grad_(grad) {}
    float* start(int64_t first, int64_t count) {
      size_ = count * grad_.D_;
      out_ = grad_.out_ + first * grad_.D_ * bytes_of(grad_.dtype_);
      if (grad_.dtype_ != Dtype::kFloat && int64_t(sums_.size()) < size_) sums_.resize(size_);
      float* sums = grad_.dtype_ == Dtype::kFloat ? reinterpret_cast<float*>(out_) : sums_.data();
      std::fill_n(sums, size_, 0.0f);
      return sums;
    }
    void write() {
      if (grad_.dtype_ != Dtype::kFloat) simd().narrow(sums_.data(), size_, grad_.dtype_, out_);
    }

   private:
    const GradRows& grad_;
    std::vector<float> sums_;
    int64_t size_ = 0;
    char* out_ = nullptr;
  };

  void clear(int64_t first, int64_t count) const {
    std::fill_n(out_ + first * D_ * bytes_of(dtype_), count * D_ * bytes_of(dtype_), char(0));
  }

 private:
  char* out_;
  Dtype dtype_;
  int64_t D_;
};

// [rows, ...] of `like`, or nothing where the gradient is not wanted
inline Tensor new_grad(const Tensor& like, bool wanted, int64_t rows, ScalarType dtype) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < like.dim(); ++i) shape.push_back(like.size(i));
  shape[0] = rows;
  return new_tensor(like, wanted ? shape : std::vector<int64_t>{0}, dtype);
}

}  // namespace stair
