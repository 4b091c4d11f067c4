// SPDX-License-Identifier: Apache-2.0

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinHandle;
use tokio::time::{timeout, Duration};
use ttrpc::proto::KeyValue;
use ttrpc::r#async::transport::Socket;
use ttrpc::r#async::Client;
use ttrpc::{Error, Request};

use crate::{hex, unhex};

/// No code at all: the connection, not the call.
const NO_CODE: i32 = -1;

struct Connection {
    /// The client's own, for a half-close.
    socket: UnixStream,
    client: Client,
}

fn done(id: &str, code: i32, text: &str, payload: &[u8], details: &[u8]) {
    let (text, payload, details) = (hex(text.as_bytes()), hex(payload), hex(details));
    println!("done\t{id}\t{code}\t{text}\t{payload}\t{details}");
}

fn failed(id: &str, error: &Error) {
    match error {
        Error::RpcStatus(s) => {
            let details: Vec<u8> = s.details.iter().flat_map(|d| d.value.clone()).collect();
            done(id, s.code.value(), &s.message, b"", &details);
        }
        // the crate's own words when the call's time is over
        Error::Others(text) if text.contains("timeout") => done(id, 4, text, b"", b""),
        other => done(id, NO_CODE, &other.to_string(), b"", b""),
    }
}

fn dial(name: &str, path: &str) -> Option<Connection> {
    match UnixStream::connect(path) {
        Ok(socket) => {
            let own = socket.try_clone().unwrap();
            let client = Client::new(Socket::try_from(own).unwrap());
            println!("dialled\t{name}");
            Some(Connection { socket, client })
        }
        Err(error) => {
            println!("failed\t{name}\t{}", hex(error.to_string().as_bytes()));
            None
        }
    }
}

/// SERVICE METHOD TIMEOUT_NS PAYLOAD METADATA
fn request(words: &[String]) -> Request {
    let mut request = Request::new();
    request.service = words[0].clone();
    request.method = words[1].clone();
    request.timeout_nano = words[2].parse().unwrap();
    request.payload = unhex(&words[3]);
    for pair in words[4].split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap();
        let mut kv = KeyValue::new();
        kv.key = key.to_string();
        kv.value = value.to_string();
        request.metadata.push(kv);
    }
    request
}

async fn call(id: String, client: Client, request: Request) {
    match client.request(request).await {
        Ok(response) => done(&id, 0, "", &response.payload, b""),
        Err(error) => failed(&id, &error),
    }
}

/// Sends the payload as so many messages, and expects each back.
async fn stream(id: String, client: Client, words: Vec<String>) {
    let mut request = Request::new();
    request.service = words[0].clone();
    request.method = words[1].clone();
    let (count, payload) = (words[2].parse::<usize>().unwrap(), unhex(&words[3]));
    let mut back = 0;
    let talk = async {
        let mut stream = client.new_stream(request, true, true).await?;
        for _ in 0..count {
            stream.send(payload.clone()).await?;
            back += usize::from(stream.recv().await? == payload);
        }
        stream.close_send().await
    };
    match timeout(Duration::from_secs(5), talk).await {
        Ok(Ok(())) => done(&id, 0, "", back.to_string().as_bytes(), b""),
        Ok(Err(error)) => failed(&id, &error),
        Err(_) => done(&id, 4, "no answer", b"", b""),
    }
}

pub async fn obey() {
    let mut connections: HashMap<String, Connection> = HashMap::new();
    let mut tasks: HashMap<String, JoinHandle<()>> = HashMap::new();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let words: Vec<String> = line.split('\t').map(str::to_string).collect();
        let arguments = words.iter().skip(3).cloned().collect::<Vec<_>>();
        match words[0].as_str() {
            "dial" => {
                if let Some(connection) = dial(&words[1], &words[2]) {
                    connections.insert(words[1].clone(), connection);
                }
            }
            "call" => {
                let client = connections[&words[2]].client.clone();
                let task = call(words[1].clone(), client, request(&arguments));
                tasks.insert(words[1].clone(), tokio::spawn(task));
            }
            "stream" => {
                let client = connections[&words[2]].client.clone();
                tokio::spawn(stream(words[1].clone(), client, arguments));
            }
            "cancel" => {
                tasks[&words[1]].abort();
                done(&words[1], 1, "cancelled", b"", b"");
            }
            "half" => connections[&words[1]].socket.shutdown(Shutdown::Write).unwrap(),
            // the crate closes when the last user of the client is gone, calls included
            "close" => connections[&words[1]].socket.shutdown(Shutdown::Both).unwrap(),
            other => panic!("unknown word {other}"),
        }
    }
}
