// SPDX-License-Identifier: Apache-2.0

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::wrappers::StringValue;
use protobuf::{EnumOrUnknown, Message};
use tokio::sync::oneshot;
use ttrpc::r#async::{MethodHandler, Server, Service, StreamHandler, StreamInner, TtrpcContext};
use ttrpc::{get_status, Code, Request, Response, Result, Status};

const HOLD_SIZE: usize = 200;

static CANCELLED: AtomicUsize = AtomicUsize::new(0);
static HELD: Mutex<Vec<oneshot::Sender<()>>> = Mutex::new(Vec::new());

/// Dropped without an answer: the library has cancelled the call.
struct Unanswered;

impl Drop for Unanswered {
    fn drop(&mut self) {
        CANCELLED.fetch_add(1, Ordering::SeqCst);
    }
}

fn answer(payload: Vec<u8>) -> Response {
    let mut response = Response::new();
    response.set_status(get_status(Code::OK, ""));
    response.payload = payload;
    response
}

fn text(value: String) -> Response {
    let mut message = StringValue::new();
    message.value = value;
    answer(message.write_to_bytes().unwrap())
}

fn failure(status: Status) -> Response {
    let mut response = Response::new();
    response.set_status(status);
    response
}

fn meta(ctx: &TtrpcContext) -> Response {
    let mut lines: Vec<String> = ctx
        .metadata
        .iter()
        .flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}")))
        .collect();
    lines.sort();
    lines.push(format!("timeout={}", ctx.timeout_nano));
    text(lines.join("\n"))
}

/// Answers with the code and the text that it is told: "CODE TEXT".
fn fail(payload: &[u8]) -> Response {
    let message = StringValue::parse_from_bytes(payload).unwrap_or_default();
    let (code, text) = message.value.split_once(' ').unwrap_or(("2", ""));
    let mut status = get_status(Code::UNKNOWN, text);
    status.code = EnumOrUnknown::from_i32(code.parse().unwrap_or(2));
    let mut detail = Any::new();
    detail.type_url = "test/detail".to_string();
    detail.value = format!("of {text}").into_bytes();
    status.details.push(ttrpc_any(&detail));
    failure(status)
}

/// The crate compiles a google.protobuf.Any of its own.
fn ttrpc_any<T: Message>(any: &Any) -> T {
    T::parse_from_bytes(&any.write_to_bytes().unwrap()).unwrap()
}

/// Answers when 200 calls are there, the last first.
async fn hold(payload: Vec<u8>) -> Response {
    let (mine, wait) = oneshot::channel();
    {
        let mut held = HELD.lock().unwrap();
        held.push(mine);
        if held.len() == HOLD_SIZE {
            while let Some(other) = held.pop() {
                let _ = other.send(());
            }
        }
    }
    let _ = wait.await;
    answer(payload)
}

async fn never() -> Response {
    let _unanswered = Unanswered;
    std::future::pending::<Response>().await
}

struct Method(&'static str);

#[async_trait]
impl MethodHandler for Method {
    async fn handler(&self, ctx: TtrpcContext, req: Request) -> Result<Response> {
        Ok(match self.0 {
            "Check" => answer(Vec::new()),
            "Meta" => meta(&ctx),
            "Fail" => fail(&req.payload),
            "Hold" => hold(req.payload).await,
            "Never" => never().await,
            "Cancelled" => text(CANCELLED.load(Ordering::SeqCst).to_string()),
            // as every generated handler refuses what is not its message
            "Parse" => match StringValue::parse_from_bytes(&req.payload) {
                Ok(_) => answer(req.payload),
                Err(error) => failure(get_status(Code::UNKNOWN, error)),
            },
            _ => answer(req.payload),
        })
    }
}

struct EchoStream;

#[async_trait]
impl StreamHandler for EchoStream {
    async fn handler(&self, _: TtrpcContext, mut stream: StreamInner) -> Result<Option<Response>> {
        while let Ok(message) = stream.recv().await {
            stream.send(message).await?;
        }
        Ok(Some(answer(Vec::new())))
    }
}

fn service(methods: &[&'static str], streams: bool) -> Service {
    let mut service = Service { methods: HashMap::new(), streams: HashMap::new() };
    for name in methods {
        service.methods.insert(name.to_string(), Box::new(Method(name)));
    }
    if streams {
        service.streams.insert("EchoStream".to_string(), Arc::new(EchoStream));
    }
    service
}

pub async fn serve(path: &str) {
    std::fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
    let agent = ["Echo", "Meta", "Parse", "Fail", "Hold", "Never", "Cancelled", "CreateSandbox",
                 "CreateContainer"];
    let services = HashMap::from([
        ("grpc.AgentService".to_string(), service(&agent, true)),
        ("grpc.Health".to_string(), service(&["Check"], false)),
    ]);
    let listener = UnixListener::bind(path).unwrap().try_into().unwrap();
    let mut server = Server::new().add_listener(listener).register_service(services);
    server.start().await.unwrap();
    std::future::pending::<()>().await;
}
