//! `POST /hindsight/save`: this machine's own clients have the agent save its last minutes.

use std::path::PathBuf;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, HeaderValue, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::oneshot;

use super::{Peer, TEXT, plain, response};

/// Where it is.
pub(super) const PATH: &str = "/hindsight/save";

/// Asks the agent to save its last minutes. It is answered which file holds them, or why none does.
pub type SaveHindsight = Arc<dyn Fn(oneshot::Sender<Result<PathBuf, String>>) + Send + Sync>;

/// `save`: where minutes are kept.
pub(super) async fn answer(
    request: &Request<Incoming>,
    peer: Peer,
    save: Option<&SaveHindsight>,
) -> Response<Full<Bytes>> {
    // A browser on this machine asks for whatever page it shows, and says so.
    if !peer.is_this_machine() || request.headers().contains_key(ORIGIN) {
        return plain(
            StatusCode::FORBIDDEN,
            "only programs on this machine may ask for this, at a loopback address or a Unix socket\n",
        );
    }
    if *request.method() != Method::POST {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only POST saves\n");
        let headers = refused.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static("POST"));
        return refused;
    }
    let Some(save) = save else {
        return plain(
            StatusCode::NOT_FOUND,
            "no minutes are kept; start the agent with --hindsight 10m\n",
        );
    };
    let (tell, told) = oneshot::channel();
    save(tell);
    match told.await {
        Ok(Ok(path)) => response(StatusCode::OK, TEXT, format!("{}\n", path.display()).into()),
        Ok(Err(why)) => {
            let why = format!("not saved: {why}\n");
            response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, why.into())
        }
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending\n"),
    }
}
