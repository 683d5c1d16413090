//! A backup on its way from a thread that may block to the client, in a bounded number of chunks.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{BACKUP_CHUNK_LEN, BACKUP_CHUNKS, BACKUP_STALL, Node};
use crate::answer::Failure;
use crate::proto::code::Code;

/// What the writing thread says.
enum Piece {
    Chunk(Bytes),
    /// What [`Node::backup`] returned. A channel that ends without it broke off.
    End(Option<io::Result<()>>),
}

/// Starts a backup. `place` is given back when the writing thread is done.
///
/// # Errors
/// A [`Failure`] when it fails before its first byte; a later failure cuts the body off, which
/// the client sees as one.
pub(super) async fn start(
    node: Arc<dyn Node>,
    place: OwnedSemaphorePermit,
) -> Result<Response, Failure> {
    let (pieces, mut rest) = mpsc::channel(BACKUP_CHUNKS);
    let runtime = Handle::current();
    spawn_blocking(move || {
        let pieces = Pieces { pieces, runtime };
        let end = node.backup(Box::new(pieces.clone()));
        // A client that has gone away does not hear how it ended.
        let _ = pieces.send(Piece::End(end));
        drop(place);
    });
    let body = match rest.recv().await {
        Some(Piece::Chunk(first)) => Body::new(PieceBody {
            first: Some(first),
            rest,
            ended: false,
        }),
        Some(Piece::End(Some(Ok(())))) => Body::empty(),
        Some(Piece::End(Some(Err(error)))) => {
            let message = format!("the backup failed: {error}");
            return Err(Failure::new(Code::Disk.as_str(), message));
        }
        Some(Piece::End(None)) => {
            let message = "this node has no backup to give";
            return Err(Failure::new(Code::NotAllowed.as_str(), message)
                .hint("ask the coordinator on its own socket"));
        }
        None => {
            return Err(Failure::new(
                Code::Internal.as_str(),
                "the backup broke off",
            ));
        }
    };
    Ok(([(CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Where [`Node::backup`] writes to.
#[derive(Clone)]
struct Pieces {
    pieces: mpsc::Sender<Piece>,
    runtime: Handle,
}

impl Pieces {
    fn send(&self, piece: Piece) -> io::Result<()> {
        let sending = async { timeout(BACKUP_STALL, self.pieces.send(piece)).await };
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(BACKUP_CHUNK_LEN)];
        if !chunk.is_empty() {
            self.send(Piece::Chunk(Bytes::copy_from_slice(chunk)))?;
        }
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The other end: a body that fails unless the backup said that it is whole.
struct PieceBody {
    first: Option<Bytes>,
    rest: mpsc::Receiver<Piece>,
    ended: bool,
}

impl HttpBody for PieceBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = match self.rest.poll_recv(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(piece) => piece,
        };
        let frame = match piece {
            Some(Piece::Chunk(chunk)) => Some(Ok(Frame::data(chunk))),
            Some(Piece::End(Some(Ok(())))) => None,
            Some(Piece::End(Some(Err(error)))) => Some(Err(error)),
            Some(Piece::End(None)) | None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        };
        self.ended = !matches!(frame, Some(Ok(_)));
        Poll::Ready(frame)
    }
}
