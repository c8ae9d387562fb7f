// Recipes on the wire and in JSON have the same fields, and the values of enums the same names
// (ORDER_MIN_PIVOT is "min-pivot"), so one walk over the message's descriptor serves both
// directions.
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"
#include "server/rpc/messages.h"
#include "server/rpc/requests.h"

namespace babai {
namespace {

using Json = nlohmann::json;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;

constexpr size_t kRecipeJsonBytes = 64 << 10;

// "SCALE_FIT_" for enum ScaleFit.
std::string ValuePrefix(const EnumDescriptor& type) {
  std::string prefix;
  for (const char c : type.name()) {
    if (absl::ascii_isupper(c) && !prefix.empty()) prefix += '_';
    prefix += absl::ascii_toupper(c);
  }
  return prefix + '_';
}

// "min-pivot" for ORDER_MIN_PIVOT.
std::string TextOf(const google::protobuf::EnumValueDescriptor& value) {
  std::string text = value.name().substr(ValuePrefix(*value.type()).size());
  for (char& c : text) c = c == '_' ? '-' : absl::ascii_tolower(c);
  return text;
}

const google::protobuf::EnumValueDescriptor* ValueOf(const EnumDescriptor& type,
                                                     std::string_view text) {
  for (int i = 0; i < type.value_count(); ++i) {
    if (TextOf(*type.value(i)) == text) return type.value(i);
  }
  return nullptr;
}

absl::Status ReadField(const v1::Recipe& proto, const FieldDescriptor& field, Json& json) {
  const auto& reflection = *proto.GetReflection();
  const std::string name = absl::StrCat("recipe.", field.name());
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      json[field.name()] = reflection.GetInt32(proto, &field);
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_INT64:
      json[field.name()] = reflection.GetInt64(proto, &field);
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_BOOL:
      json[field.name()] = reflection.GetBool(proto, &field);
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      const double value = reflection.GetDouble(proto, &field);
      if (!std::isfinite(value)) return InvalidField(name, "must be finite");
      json[field.name()] = value;
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      // Enum values this server does not know arrive as plain numbers: proto3 enums are open.
      const int number = reflection.GetEnumValue(proto, &field);
      const auto* value = field.enum_type()->FindValueByNumber(number);
      if (value == nullptr) return InvalidField(name, absl::StrCat("unknown value ", number));
      json[field.name()] = TextOf(*value);
      return absl::OkStatus();
    }
    default:
      return absl::OkStatus();  // preset and json
  }
}

void WriteField(const FieldDescriptor& field, const Json& value, v1::Recipe& proto) {
  const auto& reflection = *proto.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection.SetInt32(&proto, &field, value.get<int32_t>());
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection.SetInt64(&proto, &field, value.get<int64_t>());
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.SetBool(&proto, &field, value.get<bool>());
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.SetDouble(&proto, &field, value.get<double>());
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection.SetEnum(&proto, &field,
                                ValueOf(*field.enum_type(), value.get_ref<const std::string&>()));
    default:
      return;
  }
}

}  // namespace

absl::StatusOr<Recipe> ToRecipe(const v1::Recipe& proto) {
  Json json = Json::object();
  if (proto.json().size() > kRecipeJsonBytes)
    return InvalidField("recipe.json",
                        absl::StrCat("must be at most ", kRecipeJsonBytes, " bytes"));
  if (!proto.json().empty()) {
    json = Json::parse(proto.json(), nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) return InvalidField("recipe.json", "must be a JSON object");
    if (!proto.preset().empty())
      return InvalidField("recipe.json", "give a preset or a JSON recipe, not both");
  } else {
    json["preset"] = proto.preset().empty() ? "babai" : proto.preset();
  }
  std::vector<const FieldDescriptor*> fields;
  proto.GetReflection()->ListFields(proto, &fields);
  for (const FieldDescriptor* field : fields) {
    if (auto s = ReadField(proto, *field, json); !s.ok()) return s;
  }
  return RecipeFromJson(json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

v1::Recipe ToProto(const Recipe& recipe) {
  v1::Recipe proto;
  const Json json = Json::parse(RecipeToJson(recipe));
  proto.set_preset(recipe.preset);
  const auto& type = *proto.GetDescriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    if (const auto it = json.find(type.field(i)->name()); it != json.end())
      WriteField(*type.field(i), *it, proto);
  }
  return proto;
}

}  // namespace babai
