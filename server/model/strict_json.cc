#include "server/model/strict_json.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

#include "server/model/refusal.h"

namespace babai {
namespace {

using Json = nlohmann::json;

// Builds the value from parse events. The library's own builders keep the last of two equal keys
// (two readers that disagree on which one counts are how a checked value and a used value come
// apart), and the one that takes a callback needs quadratic time for an object of many members.
class Builder : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  Json& root() { return root_; }
  const std::string& why() const { return why_; }  // after a false return of the parser

  bool null() override { return Put(nullptr); }
  bool boolean(bool value) override { return Put(value); }
  bool number_integer(number_integer_t value) override { return Put(value); }
  bool number_unsigned(number_unsigned_t value) override { return Put(value); }
  bool number_float(number_float_t value, const string_t&) override { return Put(value); }
  bool string(string_t& value) override { return Put(std::move(value)); }
  bool binary(binary_t&) override { return Refuse("holds binary data"); }
  bool start_object(size_t) override { return Open(Json::object()); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& key) override {
    if (skipped_depth_ > 0) return true;
    const auto [member, added] =
        open_.back()->get_ref<Json::object_t&>().emplace(std::move(key), nullptr);
    if (!added) return Refuse("has the key " + Quoted(member->first) + " twice");
    member_ = &member->second;
    const auto& dropped = limits_.dropped;
    skip_next_ = open_.size() == 1 &&
                 std::find(dropped.begin(), dropped.end(), member->first) != dropped.end();
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    // The library's message repeats bytes of the file: only the position is passed on.
    return Refuse("is not valid JSON near byte " + std::to_string(position));
  }

 private:
  bool Refuse(std::string why) {
    why_ = std::move(why);
    return false;
  }

  // Where the value went; nullptr: nowhere.
  Json* Place(Json value) {
    if (skipped_depth_ > 0) return nullptr;
    if (open_.empty()) return &(root_ = std::move(value));
    if (open_.back()->is_array()) return &open_.back()->emplace_back(std::move(value));
    return &(*member_ = std::move(value));
  }

  bool Put(Json value) {
    if (++values_ > limits_.values) return Refuse("holds too many values");
    if (!std::exchange(skip_next_, false)) Place(std::move(value));
    return true;
  }

  bool Open(Json value) {
    if (++values_ > limits_.values) return Refuse("holds too many values");
    if (++depth_ > limits_.depth) return Refuse("is nested too deeply");
    if (skipped_depth_ > 0 || std::exchange(skip_next_, false)) {
      ++skipped_depth_;
    } else {
      open_.push_back(Place(std::move(value)));
    }
    return true;
  }

  bool Close() {
    --depth_;
    if (skipped_depth_ > 0) {
      --skipped_depth_;
    } else {
      open_.pop_back();
    }
    return true;
  }

  const JsonLimits& limits_;
  Json root_;
  std::vector<Json*> open_;  // arrays and objects, outermost first
  Json* member_ = nullptr;   // of open_.back(), where the next value goes
  bool skip_next_ = false;
  int skipped_depth_ = 0;  // open arrays and objects of a dropped member
  int depth_ = 0;
  int64_t values_ = 0;
  std::string why_;
};

std::string Range(double low, double high) {
  const Json range = {low, high};
  return "[" + range[0].dump() + ", " + range[1].dump() + "]";
}

std::string Range(int64_t low, int64_t high) {
  return "[" + std::to_string(low) + ", " + std::to_string(high) + "]";
}

// JSON has one number type: 2^63 and above come as unsigned, and 1.0 is not an integer here.
bool IsIntIn(const Json& value, int64_t low, int64_t high) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return false;
  }
  const int64_t number = value.get<int64_t>();
  return number >= low && number <= high;
}

bool IsNumberIn(const Json& value, double low, double high) {
  if (!value.is_number()) return false;
  const double number = value.get<double>();
  return std::isfinite(number) && number >= low && number <= high;
}

}  // namespace

absl::StatusOr<Json> ParseJsonObject(std::string_view text, std::string_view file,
                                     const JsonLimits& limits) {
  try {
    Builder builder(limits);
    if (!Json::sax_parse(text.begin(), text.end(), &builder)) return BadFile(file, builder.why());
    if (!builder.root().is_object()) return BadFile(file, "is not a JSON object");
    return std::move(builder.root());
  } catch (const std::bad_alloc&) {
    return BadFile(file, "needs more memory than there is");
  }
}

FieldReader::FieldReader(const Json& object, std::string where)
    : object_(object), where_(std::move(where)) {
  if (!object_.is_object()) status_ = BadFile(where_, "must be an object");
}

void FieldReader::Fail(std::string_view key, std::string_view message) {
  if (status_.ok()) status_ = BadFile(where_, std::string(key) + ' ' + std::string(message));
}

bool FieldReader::Has(std::string_view key) const {
  if (!object_.is_object()) return false;
  const auto found = object_.find(std::string(key));
  return found != object_.end() && !found->is_null();
}

const Json* FieldReader::Get(std::string_view key, bool required) {
  if (Has(key)) return &object_[std::string(key)];
  if (required) Fail(key, "is missing");
  return nullptr;
}

int64_t FieldReader::Int(std::string_view key, int64_t low, int64_t high,
                         std::optional<int64_t> fallback) {
  const Json* value = Get(key, !fallback);
  if (value == nullptr) return fallback.value_or(low);
  if (IsIntIn(*value, low, high)) return value->get<int64_t>();
  Fail(key, "must be an integer in " + Range(low, high));
  return low;
}

double FieldReader::Number(std::string_view key, double low, double high,
                           std::optional<double> fallback) {
  const Json* value = Get(key, !fallback);
  if (value == nullptr) return fallback.value_or(low);
  if (IsNumberIn(*value, low, high)) return value->get<double>();
  Fail(key, "must be a number in " + Range(low, high));
  return low;
}

bool FieldReader::Bool(std::string_view key, std::optional<bool> fallback) {
  const Json* value = Get(key, !fallback);
  if (value == nullptr) return fallback.value_or(false);
  if (value->is_boolean()) return value->get<bool>();
  Fail(key, "must be true or false");
  return false;
}

std::string FieldReader::String(std::string_view key, std::optional<std::string> fallback) {
  const Json* value = Get(key, !fallback);
  if (value == nullptr) return fallback.value_or(std::string());
  if (value->is_string()) return value->get<std::string>();
  Fail(key, "must be a string");
  return {};
}

std::vector<double> FieldReader::Numbers(std::string_view key, size_t size, double low,
                                         double high) {
  const Json* value = Get(key, true);
  if (value == nullptr) return {};
  if (!value->is_array() || value->size() != size) {
    Fail(key, "must be a list of " + std::to_string(size) + " numbers");
    return {};
  }
  std::vector<double> numbers;
  for (const Json& item : *value) {
    if (!IsNumberIn(item, low, high)) {
      Fail(key, "must hold numbers in " + Range(low, high));
      return {};
    }
    numbers.push_back(item.get<double>());
  }
  return numbers;
}

std::vector<int64_t> FieldReader::IntOrInts(std::string_view key, int64_t low, int64_t high) {
  const Json* value = Get(key, false);
  if (value == nullptr) return {};
  const Json list = value->is_array() ? *value : Json::array({*value});
  std::vector<int64_t> numbers;
  for (const Json& item : list) {
    if (!IsIntIn(item, low, high)) {
      Fail(key, "must be an integer in " + Range(low, high) + ", or a list of such");
      return {};
    }
    numbers.push_back(item.get<int64_t>());
  }
  return numbers;
}

}  // namespace babai
