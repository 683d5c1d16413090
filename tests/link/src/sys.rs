//! The system calls: namespaces and TUN devices.
#![allow(
    unsafe_code,
    reason = "unshare, ioctl and pre_exec have no safe form; each use says what it relies on"
)]

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The device's name in every namespace.
const DEVICE: &str = "link0";

/// Packets that the kernel keeps until the forwarder reads them: a second of its delay at what a
/// busy machine sends.
const QUEUE_LEN: i32 = 10_000;

const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCSIFADDR: Opcode = 0x8916;
const SIOCSIFNETMASK: Opcode = 0x891c;
const SIOCSIFMTU: Opcode = 0x8922;
const SIOCSIFTXQLEN: Opcode = 0x8943;

/// A TUN device, IP packets without a header before them.
const IFF_TUN_NO_PI: i16 = 0x1001;
/// Up and running.
const IFF_UP_RUNNING: i16 = 0x41;
const AF_INET: u16 = 2;

/// The kernel's `struct ifreq`: a name, and a union of 24 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    value: [u8; 24],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

impl InterfaceRequest {
    fn new(device: &str, value: &[u8]) -> Self {
        let mut request = Self {
            name: [0; 16],
            value: [0; 24],
        };
        request.name[..device.len()].copy_from_slice(device.as_bytes());
        request.value[..value.len()].copy_from_slice(value);
        request
    }

    fn of_address(device: &str, address: Ipv4Addr) -> Self {
        let mut value = [0; 8];
        value[..2].copy_from_slice(&AF_INET.to_ne_bytes());
        value[4..].copy_from_slice(&address.octets());
        Self::new(device, &value)
    }
}

fn request<const OPCODE: Opcode>(fd: impl AsFd, mut request: InterfaceRequest) -> io::Result<()> {
    // SAFETY: each of the opcodes in this file reads, and at most writes, one `struct ifreq`,
    // which `InterfaceRequest` is, and keeps no pointer to it.
    let done = unsafe { ioctl(fd, Updater::<OPCODE, _>::new(&mut request)) };
    Ok(done?)
}

/// A network namespace and the near end of the device in it.
#[derive(Debug)]
pub(crate) struct Space {
    /// Holds the namespace.
    pub(crate) handle: Arc<OwnedFd>,
    /// Reads are packets that the namespace sends, writes are packets that it gets. Never blocks.
    pub(crate) tun: File,
}

impl Space {
    /// A namespace with loopback and a device of this address in a /24.
    pub(crate) fn new(address: Ipv4Addr, mtu: u16) -> io::Result<Self> {
        // A thread that ends has no other use for the namespace that it has left.
        let made = thread::scope(|scope| scope.spawn(|| Self::found(address, mtu)).join());
        made.map_err(|_| io::Error::other("the thread that makes a namespace panicked"))?
    }

    fn found(address: Ipv4Addr, mtu: u16) -> io::Result<Self> {
        // SAFETY: only `UnshareFlags::FILES` changes what file descriptors mean.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let handle = rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())?;
        // Without IPv6 nothing is sent unasked. A kernel that lacks it has no such file.
        for which in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
            let _ = std::fs::write(path, "1");
        }
        let tun = open_tun()?;
        let flags = IFF_TUN_NO_PI.to_ne_bytes();
        request::<TUNSETIFF>(&tun, InterfaceRequest::new(DEVICE, &flags))?;

        set_address(address)?;
        let socket = any_socket()?;
        let new = InterfaceRequest::new;
        request::<SIOCSIFMTU>(&socket, new(DEVICE, &i32::from(mtu).to_ne_bytes()))?;
        request::<SIOCSIFTXQLEN>(&socket, new(DEVICE, &QUEUE_LEN.to_ne_bytes()))?;
        for device in ["lo", DEVICE] {
            request::<SIOCSIFFLAGS>(&socket, new(device, &IFF_UP_RUNNING.to_ne_bytes()))?;
        }
        Ok(Self {
            handle: Arc::new(handle),
            tun,
        })
    }
}

/// Any socket of the namespace will do.
fn any_socket() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

/// Gives the device of this thread's namespace an address in a /24 instead of the one that it has.
pub(crate) fn set_address(address: Ipv4Addr) -> io::Result<()> {
    let socket = any_socket()?;
    let mask = Ipv4Addr::new(255, 255, 255, 0);
    let of_address = InterfaceRequest::of_address;
    request::<SIOCSIFADDR>(&socket, of_address(DEVICE, address))?;
    request::<SIOCSIFNETMASK>(&socket, of_address(DEVICE, mask))
}

/// A TUN file that is not yet a device.
pub(crate) fn open_tun() -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    Ok(File::from(file))
}

/// Moves this thread into a namespace.
pub(crate) fn enter(space: &OwnedFd) -> io::Result<()> {
    let network = Some(LinkNameSpaceType::Network);
    Ok(move_into_link_name_space(space.as_fd(), network)?)
}

/// A command that runs in a namespace and does not outlive the thread that starts it.
pub(crate) fn command(space: &Arc<OwnedFd>, program: &std::ffi::OsStr) -> Command {
    let space = Arc::clone(space);
    let mut command = Command::new(program);
    let prepare = move || {
        enter(&space)?;
        Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
    };
    // SAFETY: between fork and exec it makes two system calls and nothing else: it takes no lock
    // and allocates nothing, since an error of theirs is a number.
    unsafe { command.pre_exec(prepare) };
    command
}
