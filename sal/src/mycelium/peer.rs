//! Whom a Mycelium daemon connects to: checked before it is started, because it ends, or is alone
//! without a word, when they make no sense.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use rhizome_model::Code;

use crate::error::{Result, SalError};

/// A daemon keeps a connection to each.
const MOST: usize = 64;

/// Where another daemon listens: `tcp://ADDRESS:PORT` or `quic://ADDRESS:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    protocol: Protocol,
    address: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Quic,
}

impl FromStr for Peer {
    type Err = SalError;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            let text: String = text.chars().filter(|c| !c.is_control()).take(100).collect();
            SalError::new(
                Code::InvalidPeer,
                format!(
                    "the Mycelium peer '{text}' {why}: write tcp://ADDRESS:PORT or quic://ADDRESS:PORT, \
                     such as tcp://188.40.132.242:9651 or quic://[2a01:4f8:212:fa6::2]:9651"
                ),
            )
        };
        let (protocol, address) =
            text.split_once("://").ok_or_else(|| refuse("names no protocol"))?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "quic" => Protocol::Quic,
            _ => return Err(refuse("has a protocol that is not spoken here")),
        };
        let address: SocketAddr =
            address.parse().map_err(|_| refuse("has no IP address and port"))?;
        let ip = address.ip().to_canonical();
        if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() || is_broadcast(ip) {
            return Err(refuse("is nobody's address"));
        }
        if is_overlay(ip) {
            return Err(refuse("is inside of Mycelium itself"));
        }
        Ok(Self { protocol, address })
    }
}

fn is_broadcast(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.is_broadcast())
}

fn is_overlay(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.octets()[0] & 0xfe == 0x04)
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Quic => "quic",
        };
        write!(f, "{protocol}://{}", self.address)
    }
}

/// With whom a daemon begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    /// At least one.
    Named(Vec<Peer>),
    /// With nobody, and it waits for others: the first node of a network of one's own.
    Alone,
}

impl Peers {
    /// What somebody has configured.
    pub fn parse<S: AsRef<str>>(texts: &[S], alone: bool) -> Result<Self> {
        let mut peers: Vec<Peer> = Vec::new();
        for text in texts {
            let peer = text.as_ref().trim().parse()?;
            if !peers.contains(&peer) {
                peers.push(peer);
            }
        }
        match (peers.len(), alone) {
            (0, true) => Ok(Self::Alone),
            (0, false) => Err(SalError::new(
                Code::NoPeers,
                "Mycelium has no peer, so nobody would be reached: name one or more with \
                 --mycelium-peer tcp://ADDRESS:9651; for the first node of a private network say \
                 --mycelium-alone; without Mycelium say --mycelium off",
            )),
            (_, true) => Err(SalError::new(
                Code::InvalidPeer,
                "Mycelium is to be alone and has peers: say one or the other",
            )),
            (n, false) if n > MOST => Err(SalError::new(
                Code::InvalidPeer,
                format!("{n} Mycelium peers are too many: {MOST} are enough"),
            )),
            (_, false) => Ok(Self::Named(peers)),
        }
    }

    pub(super) fn named(&self) -> &[Peer] {
        match self {
            Self::Named(peers) => peers,
            Self::Alone => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(texts: &[&str], alone: bool) -> Code {
        Peers::parse(texts, alone).unwrap_err().code()
    }

    #[test]
    fn a_peer_is_a_protocol_and_an_address() {
        for text in ["tcp://188.40.132.242:9651", "quic://[2a01:4f8:212:fa6::2]:9651"] {
            assert_eq!(text.parse::<Peer>().unwrap().to_string(), text);
        }
        let twice = Peers::parse(&["tcp://10.0.0.1:1", " tcp://10.0.0.1:1"], false).unwrap();
        assert_eq!(twice.named().len(), 1);
    }

    #[test]
    fn rubbish_is_refused_with_what_to_write() {
        for text in [
            "",
            "rubbish",
            "188.40.132.242:9651",
            "tcp://",
            "tcp://node.example.org:9651",
            "tcp://188.40.132.242",
            "tcp://188.40.132.242:0",
            "tcp://188.40.132.242:99999",
            "tcp://0.0.0.0:9651",
            "tcp://[::]:9651",
            "tcp://255.255.255.255:9651",
            "tcp://[ff02::1]:9651",
            "tcp://[::ffff:0.0.0.0]:9651",
            "udp://188.40.132.242:9651",
            "vsock://2:9651",
            "quic://[44d:b237:e17f:d05e:81ad:b16f:4531:84b3]:9651",
            "tcp://188.40.132.242:9651 --no-tun",
            "--no-tun",
        ] {
            let error = Peers::parse(&["tcp://188.40.132.242:9651", text], false).unwrap_err();
            assert_eq!(error.code(), Code::InvalidPeer, "{text}");
            assert!(error.to_string().contains("write tcp://ADDRESS:PORT"), "{error}");
        }
        let long = "x".repeat(10_000) + "\n";
        assert!(long.parse::<Peer>().unwrap_err().to_string().len() < 400);
    }

    #[test]
    fn to_have_no_peer_must_be_said() {
        assert_eq!(code(&[], false), Code::NoPeers);
        assert_eq!(Peers::parse::<&str>(&[], true).unwrap(), Peers::Alone);
        assert_eq!(code(&["tcp://10.0.0.1:1"], true), Code::InvalidPeer);
        let many: Vec<_> = (1..=65).map(|n| format!("tcp://10.0.0.{n}:9651")).collect();
        assert_eq!(Peers::parse(&many, false).unwrap_err().code(), Code::InvalidPeer);
    }
}
