//! The gRPC listener's connections: bounded in number and in the time until they speak HTTP/2.
//!
//! From there on the server's own probes end a connection that falls silent.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;
use tracing::{debug, warn};

/// Bytes that every HTTP/2 client begins with.
const PREFACE_BYTES: usize = 24;
/// Pause after an accept that failed for want of a resource, for example file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A connection that has a slot, and until a deadline to begin.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    /// Bytes missing of its beginning, and until when they must be here.
    beginning: Option<(usize, Pin<Box<Sleep>>)>,
    _slot: OwnedSemaphorePermit,
}

/// Accepts connections. One beyond the limit waits in the system's queue; one that has not sent HTTP/2's beginning
/// within the time ends.
pub(super) fn accept(
    listener: TcpListener,
    connections_max: usize,
    begin_timeout: Duration,
) -> impl Stream<Item = io::Result<Connection>> {
    let slots = Arc::new(Semaphore::new(connections_max));
    futures::stream::unfold((listener, slots), move |(listener, slots)| async move {
        // Nobody closes the semaphore.
        let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    warn!(%error, "connection not accepted, will retry");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "connection without TCP_NODELAY");
        }
        let beginning = Some((PREFACE_BYTES, Box::pin(sleep(begin_timeout))));
        Some((Ok(Connection { stream, beginning, _slot: slot }), (listener, slots)))
    })
}

impl Connected for Connection {
    type ConnectInfo = <TcpStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some((_, deadline)) = &mut self.beginning
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        let bytes = buffer.filled().len() - before;
        self.beginning = self.beginning.take().and_then(|(missing, deadline)| {
            let missing = missing.saturating_sub(bytes);
            (missing > 0).then_some((missing, deadline))
        });
        Poll::Ready(read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
