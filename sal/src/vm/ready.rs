//! Whether a guest answers on its address: an ICMPv6 echo, asked by the node itself.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{During, Result};

const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
/// How often it is asked.
const EVERY: Duration = Duration::from_millis(50);

/// Somebody who is asked for an echo.
pub(super) struct Echo {
    socket: Socket,
    address: SocketAddr,
    number: u16,
}

impl Echo {
    pub fn new(address: Ipv6Addr) -> Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))
            .and_then(|socket| {
                socket.set_read_timeout(Some(EVERY))?;
                Ok(socket)
            })
            .during("open a socket for echo requests")?;
        let address = SocketAddrV6::new(address, 0, 0, 0).into();
        Ok(Self { socket, address, number: std::process::id() as u16 })
    }

    /// Asks once, and waits a moment for the answer.
    pub fn answers(&self) -> bool {
        let begin = Instant::now();
        let answered = self.ask().is_ok() && self.hear(begin + EVERY);
        if !answered {
            // A request that cannot be sent, since nobody has the address yet, fails at once.
            std::thread::sleep(EVERY.saturating_sub(begin.elapsed()));
        }
        answered
    }

    fn ask(&self) -> io::Result<()> {
        // The kernel fills in the checksum.
        let [high, low] = self.number.to_be_bytes();
        let request = [ECHO_REQUEST, 0, 0, 0, high, low, 0, 1];
        self.socket.send_to(&request, &self.address.into()).map(drop)
    }

    /// Other people's packets come in, too.
    fn hear(&self, until: Instant) -> bool {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 128];
        while Instant::now() < until {
            let Ok((length, from)) = self.socket.recv_from(&mut buffer) else { return false };
            // SAFETY: so many bytes were written by the call.
            let packet: Vec<u8> =
                buffer[..length].iter().map(|b| unsafe { b.assume_init() }).collect();
            let is_from_it = from.as_socket().is_some_and(|from| from.ip() == self.address.ip());
            let number = self.number.to_be_bytes();
            if is_from_it
                && packet.first() == Some(&ECHO_REPLY)
                && packet.get(4..6) == Some(&number)
            {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_address_answers() {
        assert!(Echo::new(Ipv6Addr::LOCALHOST).unwrap().answers());
        // Documentation's; nobody has it.
        assert!(!Echo::new("2001:db8::1".parse().unwrap()).unwrap().answers());
    }
}
