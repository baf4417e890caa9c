//! From a client's socket to a stream that HTTP can be spoken on: TLS, where it is asked for.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::listeners::Stream;
use crate::export::web::Web;

/// What a client gets that speaks HTTP where TLS is asked for; Go's servers say it so.
const PLAIN_HTTP: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
      Connection: close\r\n\r\nthis port speaks TLS; use https\n";

/// Any stream of bytes.
pub(super) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// Ends the handshake, if there is one. Waits for the client.
pub(super) async fn secure(stream: Stream, web: Option<&Web>) -> io::Result<Box<dyn Bytes>> {
    let unusable = |_| io::Error::other("the web configuration cannot be used");
    let tls = web.map_or(Ok(None), Web::tls).map_err(unusable)?;
    let acceptor = tls.map(TlsAcceptor::from);
    Ok(match (stream, acceptor) {
        (Stream::Tcp(stream), None) => Box::new(stream),
        (Stream::Unix(stream), None) => Box::new(stream),
        (Stream::Unix(stream), Some(acceptor)) => Box::new(acceptor.accept(stream).await?),
        (Stream::Tcp(mut stream), Some(acceptor)) => {
            if speaks_http(&stream).await? {
                // What is left unread at the end would reset the connection under the answer.
                let mut request = [0; 4096];
                if stream.read(&mut request).await? > 0 {
                    stream.write_all(PLAIN_HTTP).await?;
                }
                return Err(io::Error::other("a client that speaks no TLS"));
            }
            Box::new(acceptor.accept(stream).await?)
        }
    })
}

/// True if the first byte is one of a method's name; a handshake begins with 22.
async fn speaks_http(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    Ok(first.iter().all(u8::is_ascii_uppercase))
}
