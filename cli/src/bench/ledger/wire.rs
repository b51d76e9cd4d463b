//! A keep-alive connection that sends requests and reads answers, and nothing else: the driver shares
//! the processors with the ledger that it measures, so what it spends is missing there.

use rhizome_model::{Code, Failure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::error::internal;

const MAX_REPLY: usize = 4 * 1024 * 1024;

pub struct Wire {
    stream: TcpStream,
    host: String,
    out: Vec<u8>,
    read: Vec<u8>,
}

pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Wire {
    pub async fn connect(host: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(host)
            .await
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|e| {
                Failure::new(Code::Unavailable, format!("the ledger does not answer: {e}"))
            })?;
        Ok(Self { stream, host: host.to_owned(), out: Vec::new(), read: Vec::new() })
    }

    pub async fn call(
        &mut self,
        method: &str,
        path: &str,
        auth: Option<&str>,
        body: &str,
    ) -> Result<Answer, Failure> {
        self.out.clear();
        let auth = auth.map_or_else(String::new, |auth| format!("x-auth: {auth}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\n{auth}content-length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        self.out.extend_from_slice(head.as_bytes());
        self.out.extend_from_slice(body.as_bytes());
        self.stream.write_all(&self.out).await.map_err(broken)?;
        self.answer().await
    }

    /// Like [`Wire::call`], for what must succeed.
    pub async fn must(
        &mut self,
        method: &str,
        path: &str,
        auth: Option<&str>,
        body: &str,
    ) -> Result<Vec<u8>, Failure> {
        let answer = self.call(method, path, auth, body).await?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        let text = String::from_utf8_lossy(&answer.body);
        let message = format!("{method} {path} was answered {}: {text}", answer.status);
        Err(Failure::new(Code::Internal, message))
    }

    async fn answer(&mut self) -> Result<Answer, Failure> {
        self.read.clear();
        loop {
            if let Some((status, head, length)) = head_of(&self.read)
                && self.read.len() >= head + length
            {
                return Ok(Answer { status, body: self.read[head..head + length].to_vec() });
            }
            let read = self.stream.read_buf(&mut self.read).await.map_err(broken)?;
            if read == 0 || self.read.len() > MAX_REPLY {
                return Err(Failure::new(Code::Unavailable, "the ledger hung up"));
            }
        }
    }
}

fn broken(error: std::io::Error) -> Failure {
    internal("the connection to the ledger broke", &error)
}

/// Status, length of the head, length of the body; nothing before the head is whole.
fn head_of(bytes: &[u8]) -> Option<(u16, usize, usize)> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0);
    Some((status, end, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        let reply = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello";
        let head = reply.len() - 5;
        assert_eq!(head_of(reply), Some((201, head, 5)));
        assert_eq!(head_of(&reply[..head - 1]), None);
    }
}
