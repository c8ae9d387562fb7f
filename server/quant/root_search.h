// Where a falling function crosses zero, when a value of it is dear.
#pragma once

#include <algorithm>
#include <cmath>

namespace babai {

// Secant steps, kept inside the bracket once there is one.
class RootSearch {
 public:
  // Starts at x with the slope (< 0) that is taken until two values are known.
  RootSearch(double x, double slope) : x_(x), slope_(slope) {}

  double x() const { return x_; }

  // Takes the value at x() and moves x() on.
  void Add(double y) {
    if (std::isfinite(last_y_) && last_x_ != x_) {
      const double seen = (y - last_y_) / (x_ - last_x_);
      slope_ = std::clamp(seen, kSteepest * slope_, slope_ / kSteepest);
    }
    last_x_ = x_;
    last_y_ = y;
    (y > 0 ? above_ : below_) = x_;
    const double next = x_ - std::clamp(y / slope_, -kLongest, kLongest);
    // A function that is not quite monotonic may turn the bracket around: then it says nothing.
    const bool bracketed = std::isfinite(below_ - above_) && above_ < below_;
    x_ = bracketed && !(next > above_ && next < below_) ? (above_ + below_) / 2 : next;
  }

 private:
  static constexpr double kSteepest = 4;  // the slope changes by no more than this a step
  static constexpr double kLongest = 2;
  double x_, slope_;
  double last_x_ = 0, last_y_ = HUGE_VAL;
  double above_ = -HUGE_VAL, below_ = HUGE_VAL;  // where the function was positive, and where not
};

}  // namespace babai
