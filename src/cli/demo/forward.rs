//! A path between one worker and the coordinator that can end in the middle of a body.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Longest packet that QUIC sends over loopback, with room.
const MAX_PACKET: usize = 64 << 10;

/// How often the threads look whether the demo is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Carries packets between whoever sends to [`addr`](Self::addr) and the coordinator.
pub(super) struct Forwarder {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    client: Mutex<Option<SocketAddr>>,
    /// Bytes towards the worker until the kill; 0 when not armed.
    left: AtomicU64,
    victim: AtomicU64,
    fired: AtomicBool,
    over: AtomicBool,
}

impl Forwarder {
    pub(super) fn start(coordinator: &str) -> anyhow::Result<Self> {
        let down = UdpSocket::bind("127.0.0.1:0")?;
        let up = UdpSocket::bind("127.0.0.1:0")?;
        up.connect(coordinator)?;
        for socket in [&down, &up] {
            socket.set_read_timeout(Some(LOOK_EVERY))?;
        }
        let addr = down.local_addr()?;
        let shared = Arc::new(Shared::default());
        let (down2, up2, theirs) = (down.try_clone()?, up.try_clone()?, Arc::clone(&shared));
        thread::spawn(move || theirs.carry_up(&down2, &up2));
        let theirs = Arc::clone(&shared);
        thread::spawn(move || theirs.carry_down(&up, &down));
        Ok(Self { addr, shared })
    }

    pub(super) fn addr(&self) -> String {
        self.addr.to_string()
    }

    /// Kills `pid` once `bytes` more have gone to the worker; what follows is dropped.
    pub(super) fn kill_after(&self, bytes: u64, pid: u32) {
        self.shared.victim.store(u64::from(pid), Ordering::SeqCst);
        self.shared.left.store(bytes, Ordering::SeqCst);
    }

    pub(super) fn has_fired(&self) -> bool {
        self.shared.fired.load(Ordering::SeqCst)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn carry_up(&self, from: &UdpSocket, to: &UdpSocket) {
        let mut packet = vec![0; MAX_PACKET];
        while !self.over.load(Ordering::SeqCst) {
            if let Ok((len, client)) = from.recv_from(&mut packet) {
                *self.client() = Some(client);
                // The coordinator may be gone for a while; QUIC sends again.
                let _ = to.send(&packet[..len]);
            }
        }
    }

    fn carry_down(&self, from: &UdpSocket, to: &UdpSocket) {
        let mut packet = vec![0; MAX_PACKET];
        while !self.over.load(Ordering::SeqCst) {
            let Ok(len) = from.recv(&mut packet) else {
                continue;
            };
            if self.spend(len as u64) {
                continue;
            }
            let client = *self.client();
            if let Some(client) = client {
                let _ = to.send_to(&packet[..len], client);
            }
        }
    }

    /// Counts a packet; true when it is the one that must not arrive.
    fn spend(&self, len: u64) -> bool {
        let left = self.left.load(Ordering::SeqCst);
        if left == 0 {
            return false;
        }
        if left > len {
            self.left.store(left - len, Ordering::SeqCst);
            return false;
        }
        self.left.store(0, Ordering::SeqCst);
        let pid = i32::try_from(self.victim.load(Ordering::SeqCst)).ok();
        let killed = pid
            .and_then(Pid::from_raw)
            .map(|pid| kill_process(pid, Signal::KILL));
        let killed: io::Result<()> = match killed {
            Some(result) => result.map_err(Into::into),
            None => Err(io::Error::other("no process to kill")),
        };
        self.fired.store(killed.is_ok(), Ordering::SeqCst);
        true
    }

    fn client(&self) -> std::sync::MutexGuard<'_, Option<SocketAddr>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
