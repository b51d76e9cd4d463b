//! What a Mycelium daemon says of itself, on its HTTP API.
//!
//! Only questions that it answers at once: waiting for a message there holds up everybody else's.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rhizome_model::api::{PeerOrigin, PeerState, PeerView, TrafficView};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

/// All of its answers come from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A large network has some thousand routes of 200 bytes.
const MAX_ANSWER: usize = 16 << 20;

/// The API of one daemon.
#[derive(Debug, Clone, Copy)]
pub(super) struct Api {
    pub address: SocketAddr,
}

/// All that we want to know, at one time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Look {
    pub address: Ipv6Addr,
    pub peers: Vec<PeerView>,
    pub routes: usize,
    pub fallback_routes: usize,
    pub traffic: TrafficView,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    node_ip: Ipv6Addr,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    endpoint: Endpoint,
    #[serde(rename = "type")]
    origin: String,
    connection_state: String,
    tx_bytes: u64,
    rx_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    proto: String,
    /// Since 0.7.6.
    addr: Option<PeerAddress>,
    /// Before.
    socket_addr: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum PeerAddress {
    Socket(String),
    Vsock { cid: u32, port: u32 },
}

#[derive(Deserialize)]
struct Route {
    /// A number, or "infinite" where nothing goes that way.
    metric: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Packets {
    by_source: Vec<Counted>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counted {
    packet_count: u64,
    byte_count: u64,
}

impl Api {
    pub async fn look(self) -> Result<Look, String> {
        let info: Info = self.get("/admin").await?;
        let peers: Vec<Stats> = self.get("/admin/peers").await?;
        let routes: Vec<Route> = self.get("/admin/routes/selected").await?;
        let fallback: Vec<Route> = self.get("/admin/routes/fallback").await?;
        let packets: Packets = self.get("/admin/stats/packets").await?;
        let ways = |routes: &[Route]| routes.iter().filter(|r| r.metric.is_u64()).count();
        Ok(Look {
            address: info.node_ip,
            peers: peers.into_iter().map(peer).collect(),
            routes: ways(&routes),
            fallback_routes: ways(&fallback),
            traffic: TrafficView {
                packets: packets.by_source.iter().map(|c| c.packet_count).sum(),
                bytes: packets.by_source.iter().map(|c| c.byte_count).sum(),
            },
        })
    }

    async fn get<T: DeserializeOwned>(self, path: &str) -> Result<T, String> {
        let bytes = tokio::time::timeout(ANSWER_WITHIN, self.fetch(path))
            .await
            .map_err(|_| format!("{path} was not answered within {ANSWER_WITHIN:?}"))?
            .map_err(|e| format!("{path}: {e}"))?;
        serde_json::from_slice(&bytes)
            .map_err(|e| format!("{path}: the answer is not understood: {e}"))
    }

    async fn fetch(self, path: &str) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the sender.
        tokio::spawn(connection);
        let request = Request::get(format!("/api/v1{path}"))
            .header(hyper::header::HOST, self.address.to_string())
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(response.status().to_string().into());
        }
        Ok(Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes())
    }
}

fn peer(stats: Stats) -> PeerView {
    let Endpoint { proto, addr, socket_addr } = stats.endpoint;
    let place = match addr {
        Some(PeerAddress::Socket(address)) => Some(address),
        Some(PeerAddress::Vsock { cid, port }) => Some(format!("{cid}:{port}")),
        None => socket_addr,
    };
    PeerView {
        endpoint: format!("{proto}://{}", place.unwrap_or_default()),
        origin: match stats.origin.as_str() {
            "static" => PeerOrigin::Configured,
            "inbound" => PeerOrigin::Inbound,
            _ => PeerOrigin::Discovered,
        },
        state: match stats.connection_state.as_str() {
            "alive" => PeerState::Alive,
            "connecting" => PeerState::Connecting,
            _ => PeerState::Dead,
        },
        tx_bytes: stats.tx_bytes,
        rx_bytes: stats.rx_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_read_as_new_and_old_daemons_write_them() {
        let text = r#"[
            {"endpoint":{"proto":"tcp","addr":{"socket":"192.0.2.1:9651"}},"type":"static",
             "connectionState":"dead","txBytes":0,"rxBytes":0,"discovered":1,"lastConnected":null},
            {"endpoint":{"proto":"vsock","addr":{"vsock":{"cid":2,"port":9651}}},"type":"linkLocalDiscovery",
             "connectionState":"connecting","txBytes":0,"rxBytes":0,"discovered":1,"lastConnected":null},
            {"endpoint":{"proto":"quic","socketAddr":"[2001:db8::1]:9651"},"type":"inbound",
             "connectionState":"alive","txBytes":12,"rxBytes":34}]"#;
        let stats: Vec<Stats> = serde_json::from_str(text).unwrap();
        let seen: Vec<_> = stats.into_iter().map(peer).collect();
        let shown: Vec<_> = seen.iter().map(|p| (p.endpoint.as_str(), p.origin, p.state)).collect();
        assert_eq!(
            shown,
            [
                ("tcp://192.0.2.1:9651", PeerOrigin::Configured, PeerState::Dead),
                ("vsock://2:9651", PeerOrigin::Discovered, PeerState::Connecting),
                ("quic://[2001:db8::1]:9651", PeerOrigin::Inbound, PeerState::Alive),
            ]
        );
        assert_eq!((seen[2].tx_bytes, seen[2].rx_bytes), (12, 34));
        let routes: Vec<Route> =
            serde_json::from_str(r#"[{"subnet":"400::/64","metric":20},{"metric":"infinite"}]"#)
                .unwrap();
        assert!(routes[0].metric.is_u64() && !routes[1].metric.is_u64());
    }
}
