//! What the Linux guest serves on its address.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, TcpStream};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(10);

/// The body of what a guest answers under a path; anything but success is an error, with what it said.
pub fn get(address: Ipv6Addr, path: &str) -> io::Result<String> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("{path}: {answer}"))),
    }
}

/// It answers on its address a little before what it serves is there.
fn connect(address: Ipv6Addr) -> io::Result<TcpStream> {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect((address, 80)) {
            Err(_) if Instant::now() < until => std::thread::sleep(STEP),
            done => return done,
        }
    }
}
