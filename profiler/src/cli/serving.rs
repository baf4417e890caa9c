//! `/metrics`, on a thread of its own.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail};
use tokio::runtime::{EnterGuard, Runtime};

use crate::agent::privileges::serving::{self, Files};
use crate::export::http::{self, ListenAddress, Listener, SaveHindsight, SocketFile};
use crate::export::{Exposition, Web, WebError};

/// Ports that are bound, and nobody serves at yet.
pub(super) struct Door {
    runtime: Runtime,
    listeners: Vec<Listener>,
    web: Option<Arc<Web>>,
}

impl Door {
    /// Binds them; before anything is attached, so that a taken port leaves nothing behind.
    pub(super) fn open(listen: &[ListenAddress], web: Option<Arc<Web>>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("http")
            .build()?;
        let listeners = runtime.block_on(async {
            let mut listeners = Vec::new();
            for address in listen {
                listeners.push(Listener::bind(address).await.with_context(|| {
                    format!(
                        "cannot serve /metrics on {address}; is another agent running? try --listen"
                    )
                })?);
            }
            anyhow::Ok(listeners)
        })?;
        Ok(Self {
            runtime,
            listeners,
            web,
        })
    }

    /// While the value lives, what is waited for is waited for by the thread that serves.
    pub(super) fn enter(&self) -> EnterGuard<'_> {
        self.runtime.enter()
    }

    /// Where it leads, as a client would name it.
    pub(super) fn urls(&self) -> io::Result<Vec<String>> {
        let is_tls = self.web.as_ref().is_some_and(|web| web.is_tls());
        let urls = self.listeners.iter().map(|listener| listener.url(is_tls));
        urls.collect()
    }

    /// Serves until `until` resolves. Scrapes and signals wait on a thread of their own: an event loop that
    /// also ticks wakes nearly three times a tick. It can do little else, see [`serving`].
    pub(super) fn serve(
        self,
        exposition: Arc<Exposition>,
        save: Option<SaveHindsight>,
        until: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Serving> {
        let Self {
            runtime,
            listeners,
            web,
        } = self;
        let files = listeners.iter().filter_map(Listener::file).collect();
        let thread = thread::Builder::new().name("http".into()).spawn(move || {
            let readable = if web.is_some() {
                Files::Readable
            } else {
                Files::Closed
            };
            if let Err(error) = serving::confine(readable) {
                log::warn!("the threads that serve /metrics are not confined: {error}");
            }
            runtime.block_on(http::serve(listeners, web, exposition, save, until));
            // A password that is being checked holds nobody up.
            runtime.shutdown_background();
        })?;
        Ok(Serving {
            thread,
            _files: files,
        })
    }
}

/// The thread that serves.
pub(super) struct Serving {
    thread: JoinHandle<()>,
    /// Sockets' files: taken away at the end by the thread that holds this, which may.
    _files: Vec<Arc<SocketFile>>,
}

impl Serving {
    /// Waits until it has ended.
    pub(super) fn end(self) -> Result<()> {
        if self.thread.join().is_err() {
            bail!("the thread that serves /metrics failed");
        }
        Ok(())
    }
}

/// Reads the web configuration, where there is one.
pub(super) fn open_web(file: Option<PathBuf>) -> Result<Option<Arc<Web>>, WebError> {
    let open = |file: PathBuf| Web::open(&file).map(Arc::new);
    file.map(open).transpose()
}
