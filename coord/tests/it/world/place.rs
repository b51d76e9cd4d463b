//! A server at an address that stays, while the server itself comes and goes. It runs in a runtime
//! of its own: when that is thrown away, everything of it is gone at once, as when a process dies.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::Pin;
use std::sync::Mutex;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

type Serve = dyn Fn(TcpListener) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

pub struct Place {
    address: SocketAddr,
    serve: Box<Serve>,
    runtime: Mutex<Option<Runtime>>,
}

impl Place {
    pub fn new(
        serve: impl Fn(TcpListener) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync + 'static,
    ) -> Self {
        let address = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { address, serve: Box::new(serve), runtime: Mutex::default() }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn open(&self) {
        let mut runtime = self.runtime.lock().unwrap();
        assert!(runtime.is_none(), "it is open");
        let listener = (0..100)
            .find_map(|_| match StdListener::bind(self.address) {
                Ok(listener) => Some(listener),
                Err(_) => {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    None
                }
            })
            .expect("the port is free again");
        listener.set_nonblocking(true).unwrap();
        let new = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _in_it = new.enter();
            TcpListener::from_std(listener).unwrap()
        };
        new.spawn((self.serve)(listener));
        *runtime = Some(new);
    }

    pub fn close(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.close();
    }
}
