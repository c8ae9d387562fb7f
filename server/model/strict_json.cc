#include "server/model/strict_json.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <set>

#include "server/model/refusal.h"

namespace babai {
namespace {

using Json = nlohmann::json;

// Thrown through the parser by the guard below and caught in ParseJsonObject().
struct Refused {
  std::string why;
};

// Watches a parse. The library keeps the last of two equal keys; two readers that disagree on which
// one counts are how a checked value and a used value come apart, so equal keys are refused.
class Guard {
 public:
  explicit Guard(const JsonLimits& limits) : limits_(limits) {}

  // `depth` counts the open arrays and objects. Returns whether to keep the value. The end of a
  // value that is not kept is never announced, so nothing here relies on ends.
  bool operator()(int depth, Json::parse_event_t event, const Json& value) {
    using Event = Json::parse_event_t;
    const bool starts = event == Event::object_start || event == Event::array_start;
    if (starts && depth >= limits_.depth) throw Refused{"is nested too deeply"};
    if ((starts || event == Event::value) && ++values_ > limits_.values) {
      throw Refused{"holds too many values"};
    }
    if (starts) {
      keys_.resize(depth + 1);
      keys_[depth].clear();
    }
    if (event == Event::key) AddKey(depth, value.get_ref<const std::string&>());
    return !(dropping_ && depth > 1);
  }

 private:
  void AddKey(int depth, const std::string& key) {
    if (depth == 1) {
      dropping_ =
          std::find(limits_.dropped.begin(), limits_.dropped.end(), key) != limits_.dropped.end();
    }
    if (dropping_ && depth > 1) return;
    if (!keys_[depth - 1].insert(key).second)
      throw Refused{"has the key " + Quoted(key) + " twice"};
  }

  const JsonLimits& limits_;
  std::vector<std::set<std::string>> keys_;  // of the open object at each depth
  int64_t values_ = 0;
  bool dropping_ = false;
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
    Guard guard(limits);
    Json json = Json::parse(text.begin(), text.end(), std::ref(guard));
    if (!json.is_object()) return BadFile(file, "is not a JSON object");
    return json;
  } catch (const Refused& refused) {
    return BadFile(file, refused.why);
  } catch (const Json::exception& error) {
    // The library's message repeats bytes of the file: only the position is passed on.
    const auto* parse = dynamic_cast<const Json::parse_error*>(&error);
    return BadFile(file, parse == nullptr
                             ? "is not valid JSON (a number is out of range)"
                             : "is not valid JSON near byte " + std::to_string(parse->byte));
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
