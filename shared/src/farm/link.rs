//! The in-memory link: the same frames as on a network, handed from thread to thread.
//!
//! Control messages are really serialised and read again; a payload is shared, not copied. Its queues have no bound of
//! their own: what is in flight is bounded by those who send (assigned tasks, open requests, unacknowledged
//! deliveries).

use std::sync::{Arc, mpsc};

use serde::Serialize;

use super::frame::{Bulk, Frame, encode_control};

/// The sending end of a link in one direction. Cloning gives another hand on the same end.
#[derive(Clone)]
pub struct Outbox {
    put: Arc<dyn Fn(Frame) -> bool + Send + Sync>,
    close: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// The other side is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the other side of the link is gone")]
pub struct LinkClosed;

impl Outbox {
    /// `put` takes a frame and says whether anybody will get it.
    pub fn new(put: impl Fn(Frame) -> bool + Send + Sync + 'static) -> Self {
        Self {
            put: Arc::new(put),
            close: None,
        }
    }

    /// With a way to end the link, whoever else has a hand on it.
    pub fn closing(self, close: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            close: Some(Arc::new(close)),
            ..self
        }
    }

    /// Ends the link at once, where it can be.
    pub fn hang_up(&self) {
        if let Some(close) = &self.close {
            close();
        }
    }

    /// A link into a mailbox that other things arrive in, too.
    pub fn into_mailbox<M: Send + 'static>(
        mailbox: mpsc::Sender<M>,
        wrap: impl Fn(Frame) -> M + Send + Sync + 'static,
    ) -> Self {
        Self::new(move |frame| mailbox.send(wrap(frame)).is_ok())
    }

    pub fn control<T: Serialize>(&self, message: &T) -> Result<(), LinkClosed> {
        self.frame(Frame::Control(encode_control(message)))
    }

    pub fn bulk(&self, bulk: &Bulk) -> Result<(), LinkClosed> {
        self.frame(bulk.encode())
    }

    pub fn frame(&self, frame: Frame) -> Result<(), LinkClosed> {
        if (self.put)(frame) {
            Ok(())
        } else {
            Err(LinkClosed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{bytes::Bytes, frame::decode_control, ids::ContentHash, ids::TaskId};
    use super::*;

    #[test]
    fn what_is_sent_arrives_in_order_and_a_closed_link_says_so() {
        let (sender, receiver) = mpsc::channel();
        let outbox = Outbox::into_mailbox(sender, |frame| frame);
        outbox.control(&"first").unwrap();
        let payload = Bytes::copy_from(&[1, 2, 3]).unwrap();
        let sent = Bulk::delivery(ContentHash::of(b"plan"), TaskId(5), payload);
        outbox.bulk(&sent).unwrap();
        match receiver.recv().unwrap() {
            Frame::Control(bytes) => assert_eq!(decode_control::<String>(&bytes).unwrap(), "first"),
            Frame::Bulk { .. } => panic!("out of order"),
        }
        match receiver.recv().unwrap() {
            Frame::Bulk { head, payload } => {
                assert_eq!(
                    payload.as_slice().as_ptr(),
                    sent.payload.as_slice().as_ptr()
                );
                assert_eq!(Bulk::decode(&head, payload).unwrap(), sent);
            }
            Frame::Control(_) => panic!("out of order"),
        }
        drop(receiver);
        assert_eq!(outbox.control(&"late"), Err(LinkClosed));
    }
}
