// ModelService: the catalog on disk and the engine's loaded models as one list.
#pragma once

#include <functional>
#include <string>

#include "babai/v1/models.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/rpc/call.h"
#include "server/store/catalog.h"

namespace babai {

// What GetServerInfo tells besides what the layers know.
struct ServerFacts {
  std::string version;
  std::string device = "cpu";
  int threads = 0;
  int64_t max_queue = 0;
  absl::Time start_time = absl::Now();
};

// Thread-safe. Everything given must outlive it and the server it is registered with.
class ModelService final : public v1::ModelService::CallbackService {
 public:
  // `on_change` is called when a model was loaded or unloaded by a call.
  ModelService(Engine* engine, Catalog* catalog, CallCenter* center, ServerFacts facts,
               std::function<void()> on_change)
      : engine_(engine),
        catalog_(catalog),
        center_(center),
        facts_(std::move(facts)),
        on_change_(std::move(on_change)) {}

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::Model* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* LoadModel(grpc::CallbackServerContext* context,
                                      const v1::LoadModelRequest* request,
                                      v1::Model* response) override;
  grpc::ServerUnaryReactor* UnloadModel(grpc::CallbackServerContext* context,
                                        const v1::UnloadModelRequest* request,
                                        v1::Model* response) override;
  grpc::ServerUnaryReactor* PinModel(grpc::CallbackServerContext* context,
                                     const v1::PinModelRequest* request,
                                     v1::Model* response) override;
  grpc::ServerUnaryReactor* UnpinModel(grpc::CallbackServerContext* context,
                                       const v1::UnpinModelRequest* request,
                                       v1::Model* response) override;
  grpc::ServerUnaryReactor* DeleteModel(grpc::CallbackServerContext* context,
                                        const v1::DeleteModelRequest* request,
                                        google::protobuf::Empty* response) override;
  grpc::ServerUnaryReactor* SetAlias(grpc::CallbackServerContext* context,
                                     const v1::SetAliasRequest* request,
                                     v1::Model* response) override;
  grpc::ServerUnaryReactor* ExportModel(grpc::CallbackServerContext* context,
                                        const v1::ExportModelRequest* request,
                                        google::longrunning::Operation* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::ServerInfo* response) override;

 private:
  absl::Status Describe(const std::string& name, bool full, v1::Model& response) const;
  absl::Status List(const v1::ListModelsRequest& request, v1::ListModelsResponse& response) const;
  absl::Status Delete(const std::string& name);
  void Inform(v1::ServerInfo& response) const;
  // Checks the name, does `change` to the engine and answers with the model as it is then.
  absl::Status Change(const std::string& name, const std::function<absl::Status()>& change,
                      v1::Model& response);

  Engine* engine_;
  Catalog* catalog_;
  CallCenter* center_;
  ServerFacts facts_;
  std::function<void()> on_change_;
};

}  // namespace babai
