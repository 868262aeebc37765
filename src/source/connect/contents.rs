//! The bytes that a target names: data of the kubeconfig, and files, which are read again.

use std::sync::Arc;

use http::HeaderValue;

use super::{
    field::FieldError,
    headers::bearer,
    kubeconfig::read_file,
    plugin::Credential,
    target::{Authorization, Input, Origin, Target, TlsTarget, Trust},
    tls::{self, Pem, Trusted},
};

/// The bytes of all inputs of a target.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// The certificates that verify the server.
    pub(super) authority: Option<Arc<[u8]>>,
    /// The client certificate and its key.
    identity: Option<[Arc<[u8]>; 2]>,
    /// The header `Authorization`, unless a plugin provides it.
    pub(super) authorization: Option<HeaderValue>,
}

impl Contents {
    /// Reads everything.
    ///
    /// # Errors
    /// The first input that cannot be read.
    pub(super) fn read(target: &Target) -> Result<Contents, FieldError> {
        match Contents::read_again(target, &Contents::default()) {
            (_, Some(error)) => Err(error),
            (contents, None) => Ok(contents),
        }
    }

    /// Reads everything again. An input that cannot be read keeps its last bytes, as in client-go, because some programs
    /// remove a file after its first use. The first error is returned as well.
    pub(super) fn read_again(target: &Target, last: &Contents) -> (Contents, Option<FieldError>) {
        let mut first_error = None;
        let mut keep = |error| {
            first_error.get_or_insert(error);
        };
        let mut contents = last.clone();
        if let Some(TlsTarget { trust: Trust::Authority(input), .. }) = &target.tls {
            match read(input) {
                Ok(bytes) => contents.authority = Some(bytes),
                Err(error) => keep(error),
            }
        }
        if let Some([certificate, key]) = target.tls.as_ref().and_then(|tls| tls.identity.as_ref()) {
            match read(certificate).and_then(|certificate| Ok([certificate, read(key)?])) {
                Ok(pair) => contents.identity = Some(pair),
                Err(error) => keep(error),
            }
        }
        match &target.authorization {
            Authorization::None | Authorization::Plugin(_) => {}
            Authorization::Fixed(header) => contents.authorization = Some(header.clone()),
            Authorization::File { file, otherwise } => match (read_token(file), otherwise) {
                (Ok(header), _) => contents.authorization = Some(header),
                (Err(_), Some(otherwise)) if contents.authorization.is_none() => {
                    contents.authorization = Some(otherwise.clone());
                }
                (Err(_), Some(_)) => {}
                (Err(error), None) => keep(error),
            },
        }
        (contents, first_error)
    }

    /// Builds the TLS configuration of these bytes. A plugin's certificate is used if the user has none.
    ///
    /// # Errors
    /// When certificates or keys cannot be used.
    pub(super) fn client_config(
        &self,
        target: &Target,
        credential: Option<&Credential>,
    ) -> Result<rustls::ClientConfig, FieldError> {
        let Some(tls) = &target.tls else {
            // An http URL never uses it.
            return tls::client_config(Trusted::Everything, None);
        };
        let trusted = match (&tls.trust, &self.authority) {
            (Trust::Authority(input), Some(bytes)) => Trusted::Certificates(Pem { place: &input.place, bytes }),
            (Trust::Authority(input), None) => return Err(FieldError::new(&input.place, "the file was not read")),
            (Trust::System { place }, _) => Trusted::System(place),
            (Trust::Nothing, _) => Trusted::Everything,
        };
        if let (Some([certificate, key]), Some(bytes)) = (&tls.identity, &self.identity) {
            let pair = [(certificate, &bytes[0]), (key, &bytes[1])];
            let pair = pair.map(|(input, bytes)| Pem { place: &input.place, bytes });
            return tls::client_config(trusted, Some(pair));
        }
        let places =
            ["status.clientCertificateData", "status.clientKeyData"].map(|field| match &target.authorization {
                Authorization::Plugin(plugin) => format!("{}: {field}", plugin.place()),
                _ => field.to_owned(),
            });
        let identity = credential.and_then(|credential| credential.identity.as_deref());
        let pair = identity.map(|[certificate, key]| {
            [Pem { place: &places[0], bytes: certificate }, Pem { place: &places[1], bytes: key }]
        });
        tls::client_config(trusted, pair)
    }

    /// Returns whether a client with the one needs other connections than a client with the other.
    pub(super) fn has_same_tls(&self, other: &Contents) -> bool {
        self.authority == other.authority && self.identity == other.identity
    }
}

/// Returns whether a target names files.
pub(super) fn has_files(target: &Target) -> bool {
    let is_file = |input: &Input| matches!(input.origin, Origin::File(_));
    let tls = target.tls.as_ref();
    let authority = tls.is_some_and(|tls| matches!(&tls.trust, Trust::Authority(input) if is_file(input)));
    let identity = tls.and_then(|tls| tls.identity.as_ref()).is_some_and(|pair| pair.iter().any(is_file));
    authority || identity || matches!(target.authorization, Authorization::File { .. })
}

fn read(input: &Input) -> Result<Arc<[u8]>, FieldError> {
    match &input.origin {
        Origin::Bytes(bytes) => Ok(bytes.clone()),
        Origin::File(path) => {
            let read = read_file(path).map_err(|error| format!("cannot read {}: {error}", path.display()));
            read.map(Into::into).map_err(|problem| FieldError::new(&input.place, problem))
        }
    }
}

/// Reads a token. White space around it is ignored.
fn read_token(file: &Input) -> Result<HeaderValue, FieldError> {
    let bytes = read(file)?;
    match bytes.trim_ascii() {
        [] => Err(FieldError::new(&file.place, "the file is empty")),
        token => bearer(token).ok_or_else(|| {
            FieldError::new(&file.place, "the token in the file contains a line break or another control character")
        }),
    }
}
