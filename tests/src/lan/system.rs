//! The calls of Linux that need `unsafe`.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves this thread, which must be the only one, into new namespaces.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: no flag here unshares the table of open files, which is what could make descriptors of other threads
    // dangle; the agent has one thread when it calls this.
    unsafe { unshare_unsafe(flags & !UnshareFlags::FILES) }.map_err(io::Error::from)
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn index(interface: &str) -> io::Result<libc::c_uint> {
    let name = CString::new(interface)?;
    // SAFETY: a terminated string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Every frame that comes in at `interface`; what is written goes out there. Needs no device node and no root.
pub fn frames(interface: &str) -> io::Result<OwnedFd> {
    let every = (libc::ETH_P_ALL as u16).to_be();
    // Without a protocol: nothing is heard before the socket is bound to the interface.
    // SAFETY: plain numbers in, a new descriptor out.
    let raw =
        checked(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // Bursts wait here while the wire's thread does not run; the system grants less where it must.
    let bytes: libc::c_int = 4 << 20;
    // SAFETY: the pointer is to a c_int, the length is its.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    })?;
    // SAFETY: all zeros is a value of this struct of numbers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every;
    address.sll_ifindex = index(interface)?.cast_signed();
    // SAFETY: the pointer is to a sockaddr_ll, the length is its.
    checked(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

/// Switches off what makes a host hand over super-packets and unfinished checksums.
pub fn plain_frames(interface: &str) -> io::Result<()> {
    #[repr(C)]
    struct Switch {
        command: u32,
        on: u32,
    }
    const SIOCETHTOOL: u64 = 0x8946;
    /// TSO, GSO, transmit checksums.
    const COMMANDS: [u32; 3] = [0x1f, 0x24, 0x17];
    // SAFETY: plain numbers in, a new descriptor out.
    let raw =
        checked(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    for command in COMMANDS {
        let mut switch = Switch { command, on: 0 };
        // SAFETY: all zeros is a value of this struct of numbers and pointers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if interface.len() >= libc::IFNAMSIZ {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = (&raw mut switch).cast();
        // SAFETY: SIOCETHTOOL takes an ifreq whose data points to an ethtool_value, which is two u32.
        checked(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) })?;
    }
    Ok(())
}
