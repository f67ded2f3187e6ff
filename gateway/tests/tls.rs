//! TLS: who is trusted, and which HTTP is negotiated.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::JoinHandle,
};

use events_model::RequestId;
use gateway::upstream::{Call, CallError, Upstream, UpstreamSettings};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

const CA: &[u8] = include_bytes!("fixtures/ca.pem");
const CERTIFICATE: &[u8] = include_bytes!("fixtures/server.pem");
const KEY: &[u8] = include_bytes!("fixtures/server.key");
const BODY: &str = r#"{"id":"u","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":0}}"#;

/// Serves one connection and tells which protocol was negotiated; none if the handshake failed.
fn serve(protocols: &[&str]) -> (SocketAddr, JoinHandle<Option<Vec<u8>>>) {
    let chain = vec![CertificateDer::from_pem_slice(CERTIFICATE).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(KEY).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let connection = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut tls = rustls::StreamOwned::new(connection, socket);
        let mut request = [0; 4_096];
        tls.read(&mut request).ok().filter(|bytes| *bytes > 0)?;
        let protocol = tls.conn.alpn_protocol().map(<[u8]>::to_vec);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", BODY.len());
        tls.write_all(format!("{head}{BODY}").as_bytes()).unwrap();
        protocol
    });
    (address, server)
}

fn upstream(address: SocketAddr, ca: Option<&[u8]>) -> Upstream {
    let mut settings = UpstreamSettings::new("fake", format!("https://localhost:{}", address.port()));
    settings.ca_file = ca.map(<[u8]>::to_vec);
    Upstream::new(settings).unwrap()
}

fn call() -> Call {
    let request_id = RequestId::from_bytes([1; 16]);
    Call { request_id, model: "m".to_owned(), body: "{}".into(), include_usage: false, traceparent: None }
}

#[tokio::test]
async fn a_server_of_the_configured_authority_is_trusted() {
    let (address, server) = serve(&["http/1.1"]);
    let answer = upstream(address, Some(CA)).complete(call()).await.unwrap();
    assert!(answer.usage.is_some());
    assert_eq!(server.join().unwrap().as_deref(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused_before_anything_is_sent() {
    let (address, server) = serve(&["http/1.1"]);
    let error = upstream(address, None).complete(call()).await.unwrap_err();
    assert!(matches!(error, CallError::Connect { .. }), "{error:?}");
    assert!(!error.billable_unknown());
    assert_eq!(server.join().unwrap(), None);
}

#[tokio::test]
async fn http2_is_negotiated_if_the_server_knows_it() {
    let (address, server) = serve(&["h2", "http/1.1"]);
    // The server then speaks no HTTP/2, so the call fails; what counts is what was agreed on.
    let error = upstream(address, Some(CA)).complete(call()).await.unwrap_err();
    assert!(!matches!(error, CallError::Timeout { .. }), "{error:?}");
    assert_eq!(server.join().unwrap().as_deref(), Some(&b"h2"[..]));
}
