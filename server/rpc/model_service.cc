#include "server/rpc/model_service.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"
#include "server/rpc/limits.h"
#include "server/rpc/messages.h"
#include "server/rpc/requests.h"

namespace babai {

absl::Status ModelService::Describe(const std::string& name, bool full, v1::Model& response) const {
  if (absl::Status s = ValidateModelName(name, "name"); !s.ok()) return s;
  const auto manifest = catalog_->ReadManifest(name);
  if (!manifest.ok()) return manifest.status();
  const auto config = engine_->ConfigOf(name);
  if (!config.ok()) return config.status();
  response = ToProto(*manifest, engine_->Status(name), *config, full);
  return absl::OkStatus();
}

// The page token is the last name of the previous page.
absl::Status ModelService::List(const v1::ListModelsRequest& request,
                                v1::ListModelsResponse& response) const {
  const auto page_size = ToPageSize(request.page_size());
  if (!page_size.ok()) return page_size.status();
  const std::vector<std::string> names = catalog_->Names();
  auto name = std::upper_bound(names.begin(), names.end(), request.page_token());
  if (request.page_token().empty()) name = names.begin();
  for (; name != names.end(); ++name) {
    if (response.models_size() == *page_size) {
      response.set_next_page_token(response.models(response.models_size() - 1).name());
      break;
    }
    v1::Model model;
    const absl::Status status = Describe(*name, /*full=*/false, model);
    if (absl::IsNotFound(status)) continue;  // deleted meanwhile
    if (!status.ok()) {                      // one unreadable model must not hide the others
      model.set_name(*name);
      model.set_state(v1::Model::STATE_FAILED);
      *model.mutable_error() = ToProtoStatus(status);
    }
    *response.add_models() = std::move(model);
  }
  return absl::OkStatus();
}

absl::Status ModelService::Change(const std::string& name,
                                  const std::function<absl::Status()>& change,
                                  v1::Model& response) {
  if (absl::Status s = ValidateModelName(name, "name"); !s.ok()) return s;
  if (!catalog_->Exists(name)) {
    return Refuse(absl::StatusCode::kNotFound, reason::kModelNotFound, "name",
                  absl::StrCat("no model '", name, "'"));
  }
  const absl::Status status = change();
  on_change_();
  if (!status.ok()) return status;
  return Describe(name, /*full=*/false, response);
}

absl::Status ModelService::Delete(const std::string& name) {
  if (absl::Status s = ValidateModelName(name, "name"); !s.ok()) return s;
  if (!catalog_->Exists(name)) {
    return Refuse(absl::StatusCode::kNotFound, reason::kModelNotFound, "name",
                  absl::StrCat("no model '", name, "'"));
  }
  if (engine_->Status(name).pinned) {
    return Refuse(absl::StatusCode::kFailedPrecondition, reason::kModelBusy, "name",
                  "the model is pinned; unpin it first");
  }
  if (absl::Status s = engine_->Unload(name); !s.ok()) return s;
  const absl::Status status = catalog_->Delete(name);
  on_change_();
  return status;
}

void ModelService::Inform(v1::ServerInfo& response) const {
  response.set_version(facts_.version);
  response.set_device(facts_.device);
  response.set_threads(facts_.threads);
  *response.mutable_start_time() = ToProto(facts_.start_time);
  *response.mutable_uptime() = ToProto(absl::Now() - facts_.start_time);
  for (const std::string& preset : PresetNames()) {
    response.add_recipe_presets(preset);
    if (const auto recipe = PresetRecipe(preset); recipe.ok())
      *response.add_recipes() = ToProto(*recipe);
  }
  response.add_source_schemes("file");
  response.set_max_prompt_bytes(limits::kPromptBytes);
  response.set_max_receive_bytes(limits::kReceiveBytes);
  response.set_max_queue(facts_.max_queue);
  response.set_models(static_cast<int64_t>(catalog_->Names().size()));
  response.set_draining(center_->draining());
}

grpc::ServerUnaryReactor* ModelService::GetModel(grpc::CallbackServerContext* context,
                                                 const v1::GetModelRequest* request,
                                                 v1::Model* response) {
  return RunUnary(
      *center_, center_->quick(), "ModelService/GetModel", context,
      [this, request, response] { return Describe(request->name(), /*full=*/true, *response); });
}

grpc::ServerUnaryReactor* ModelService::ListModels(grpc::CallbackServerContext* context,
                                                   const v1::ListModelsRequest* request,
                                                   v1::ListModelsResponse* response) {
  return RunUnary(*center_, center_->quick(), "ModelService/ListModels", context,
                  [this, request, response] { return List(*request, *response); });
}

grpc::ServerUnaryReactor* ModelService::LoadModel(grpc::CallbackServerContext* context,
                                                  const v1::LoadModelRequest* request,
                                                  v1::Model* response) {
  return RunUnary(*center_, center_->slow(), "ModelService/LoadModel", context,
                  [this, request, response] {
                    if (center_->draining()) return RefuseDraining();
                    const std::string& name = request->name();
                    return Change(
                        name, [&] { return engine_->Load(name); }, *response);
                  });
}

grpc::ServerUnaryReactor* ModelService::UnloadModel(grpc::CallbackServerContext* context,
                                                    const v1::UnloadModelRequest* request,
                                                    v1::Model* response) {
  return RunUnary(*center_, center_->slow(), "ModelService/UnloadModel", context,
                  [this, request, response] {
                    const std::string& name = request->name();
                    return Change(
                        name, [&] { return engine_->Unload(name); }, *response);
                  });
}

grpc::ServerUnaryReactor* ModelService::PinModel(grpc::CallbackServerContext* context,
                                                 const v1::PinModelRequest* request,
                                                 v1::Model* response) {
  return RunUnary(*center_, center_->slow(), "ModelService/PinModel", context,
                  [this, request, response] {
                    if (center_->draining()) return RefuseDraining();
                    const std::string& name = request->name();
                    const auto pin = [&] {
                      absl::Status loaded = engine_->Load(name);
                      return loaded.ok() ? engine_->SetPinned(name, true) : loaded;
                    };
                    return Change(name, pin, *response);
                  });
}

grpc::ServerUnaryReactor* ModelService::UnpinModel(grpc::CallbackServerContext* context,
                                                   const v1::UnpinModelRequest* request,
                                                   v1::Model* response) {
  return RunUnary(*center_, center_->slow(), "ModelService/UnpinModel", context,
                  [this, request, response] {
                    const std::string& name = request->name();
                    return Change(
                        name, [&] { return engine_->SetPinned(name, false); }, *response);
                  });
}

grpc::ServerUnaryReactor* ModelService::DeleteModel(grpc::CallbackServerContext* context,
                                                    const v1::DeleteModelRequest* request,
                                                    google::protobuf::Empty*) {
  return RunUnary(*center_, center_->slow(), "ModelService/DeleteModel", context,
                  [this, request] { return Delete(request->name()); });
}

grpc::ServerUnaryReactor* ModelService::SetAlias(grpc::CallbackServerContext* context,
                                                 const v1::SetAliasRequest*, v1::Model*) {
  return RunUnary(*center_, center_->quick(), "ModelService/SetAlias", context,
                  [] { return NotInThisRelease("", "a second name for a model"); });
}

grpc::ServerUnaryReactor* ModelService::ExportModel(grpc::CallbackServerContext* context,
                                                    const v1::ExportModelRequest*,
                                                    google::longrunning::Operation*) {
  return RunUnary(*center_, center_->quick(), "ModelService/ExportModel", context,
                  [] { return NotInThisRelease("", "exporting a model"); });
}

grpc::ServerUnaryReactor* ModelService::GetServerInfo(grpc::CallbackServerContext* context,
                                                      const v1::GetServerInfoRequest*,
                                                      v1::ServerInfo* response) {
  return RunUnary(*center_, center_->quick(), "ModelService/GetServerInfo", context,
                  [this, response] {
                    Inform(*response);
                    return absl::OkStatus();
                  });
}

}  // namespace babai
