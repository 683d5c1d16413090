use std::fmt;
use std::fs;

use anyhow::Context;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

/// Asked for by every UDP socket here, as larder does.
pub(crate) const SOCKET_BUFFER: usize = 4 << 20;

/// Where the numbers come from.
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    /// One, five and fifteen minutes.
    load: String,
    receive_buffer: usize,
    send_buffer: usize,
}

impl Machine {
    pub(crate) fn look() -> anyhow::Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find(|line| line.starts_with("model name"));
        let cpu = model.and_then(|line| line.split_once(':'));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load: Vec<_> = load.split_whitespace().take(3).collect();
        let uname = rustix::system::uname();
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        let (receive_buffer, send_buffer) = enlarge(&socket)?;
        Ok(Self {
            cpu: cpu.map_or_else(|| "unknown".into(), |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism()
                .context("the number of cores")?
                .get(),
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy()
            ),
            load: load.join(" "),
            receive_buffer,
            send_buffer,
        })
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "cores": self.cores,
            "kernel": self.kernel,
            "load": self.load,
            "receive_buffer": self.receive_buffer,
            "send_buffer": self.send_buffer,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "machine: {}, {} cores, {}, load {}",
            self.cpu, self.cores, self.kernel, self.load
        )?;
        write!(
            f,
            "socket buffers: {} KiB to receive and {} KiB to send, of {} KiB asked for",
            self.receive_buffer >> 10,
            self.send_buffer >> 10,
            SOCKET_BUFFER >> 10
        )
    }
}

/// Asks for [`SOCKET_BUFFER`] in both directions and returns what the kernel grants.
pub(crate) fn enlarge(socket: &Socket) -> anyhow::Result<(usize, usize)> {
    // A kernel that grants less is no error: the numbers say so.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    // Linux reports twice what it grants.
    Ok((
        socket.recv_buffer_size()? / 2,
        socket.send_buffer_size()? / 2,
    ))
}
