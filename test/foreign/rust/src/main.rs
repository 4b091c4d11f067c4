// SPDX-License-Identifier: Apache-2.0

//! The ttrpc crate, asynchronous as kata-agent uses it, on either side of ours: an agent whose answers
//! a test can foretell (foreign-rust serve SOCKET), and a client that does what it is told on standard
//! input (foreign-rust call). The words are described in test/chain/foreign.py, and are the same in Go.

mod call;
mod serve;

fn hex(data: &[u8]) -> String {
    data.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", path] => runtime.block_on(serve::serve(path)),
        ["call"] => runtime.block_on(call::obey()),
        _ => {
            eprintln!("usage: foreign-rust serve SOCKET | call");
            std::process::exit(2);
        }
    }
}
