use quinn::{Connection, VarInt};

/// Whether packets of the other side come over a connection, whatever is in them.
#[derive(Debug)]
pub(super) struct Pulse {
    connection: Connection,
    /// Its receive window, in bytes.
    window: u32,
    /// Packets that had come when it was looked at last.
    seen: u64,
}

impl Pulse {
    /// From now on.
    pub(super) fn new(connection: &Connection, window: u32) -> Self {
        let seen = received(connection);
        Self {
            seen,
            ..Self::since_the_dial(connection, window)
        }
    }

    /// From the beginning of the connection on.
    pub(super) fn since_the_dial(connection: &Connection, window: u32) -> Self {
        Self {
            connection: connection.clone(),
            window,
            seen: 0,
        }
    }

    /// Whether packets have come and it was never asked, as after a dial.
    pub(super) fn is_first_beat(&mut self) -> bool {
        self.seen == 0 && self.beats()
    }

    /// Whether a packet has come since it was asked last.
    pub(super) fn beats(&mut self) -> bool {
        let received = received(&self.connection);
        std::mem::replace(&mut self.seen, received) != received
    }

    /// Makes the other side send a packet, if one of this side reaches it. quinn has no ping to
    /// offer: this is a window that grows by the byte that it has shrunk by, which is said in a
    /// frame that has to be acknowledged.
    pub(super) fn probe(&self) {
        let less = VarInt::from_u32(self.window.saturating_sub(1));
        self.connection.set_receive_window(less);
        self.connection.set_receive_window(self.window.into());
    }
}

pub(super) fn received(connection: &Connection) -> u64 {
    connection.stats().udp_rx.datagrams
}
