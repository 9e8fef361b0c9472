//! How a connection to the server is made.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// A byte stream to a server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Makes streams to a server in this process.
pub(crate) type Factory = Arc<dyn Fn() -> Connecting + Send + Sync>;

/// Where the server is.
#[derive(Clone)]
pub(crate) enum Route {
    Unix(PathBuf),
    Tls { host: String, port: u16, name: ServerName<'static>, connector: TlsConnector },
    Factory(Factory),
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tls { host, port, .. } => write!(f, "https://{host}:{port}"),
            Self::Factory(_) => f.write_str("this process"),
        }
    }
}

/// Connects each time it is called; hyper keeps what it made for the next request.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) route: Route,
    /// Until the stream can carry a request.
    pub(crate) patience: Duration,
}

impl Connector {
    async fn connect(self) -> io::Result<Box<dyn Stream>> {
        let patience = self.patience;
        let stream = async {
            Ok::<Box<dyn Stream>, io::Error>(match self.route {
                Route::Unix(path) => Box::new(UnixStream::connect(path).await?),
                Route::Tls { host, port, name, connector } => {
                    let stream = TcpStream::connect((host.as_str(), port)).await?;
                    stream.set_nodelay(true)?;
                    Box::new(connector.connect(name, stream).await?)
                }
                Route::Factory(factory) => factory().await?,
            })
        };
        tokio::time::timeout(patience, stream).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {patience:?}")))
        })
    }
}

impl tower::Service<http::Uri> for Connector {
    type Response = TokioIo<Link>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Link>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let connecting = self.clone().connect();
        Box::pin(async { Ok(TokioIo::new(Link(connecting.await?))) })
    }
}

/// A connection of any kind.
pub(crate) struct Link(Box<dyn Stream>);

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, pieces)
    }
}

/// `Connection` is hyper-util's; [`TokioIo`] hands it through to what it wraps.
impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
