package bridge

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const (
	namespace  = "go-client"
	adminToken = "admin-token"
	podsPath   = "/api/v1/namespaces/" + namespace + "/pods"
	claimsPath = "/apis/boilerhouse.dev/v1alpha1/namespaces/" + namespace + "/boilerhouseclaims"
)

// controlPlane is etcd and kube-apiserver. No controller and no node runs.
type controlPlane struct {
	url, kubeconfig string
	client          *http.Client
	// server is the API server, with its command and the file of its certificate.
	server      *process
	command     []string
	certificate string
}

// startControlPlane starts the binaries of KUBEBUILDER_ASSETS, applies the CRD and creates the namespace.
func startControlPlane(t *testing.T) *controlPlane {
	t.Helper()
	assets := os.Getenv("KUBEBUILDER_ASSETS")
	if assets == "" {
		t.Skip("KUBEBUILDER_ASSETS is not set: it must name a folder with etcd and kube-apiserver " +
			"(tests/control-plane/build prints one)")
	}
	folder := t.TempDir()
	file := func(name string) string { return filepath.Join(folder, name) }
	writeFile(t, file("users.csv"), []byte(adminToken+`,admin,1,"system:masters"`+"\n"))
	writeServiceAccountKeys(t, file("key.pem"), file("public.pem"))
	address := func(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }
	etcd, peer, port := address(freePort(t)), address(freePort(t)), freePort(t)
	startProcess(t, nil, filepath.Join(assets, "etcd"), "--data-dir="+file("etcd"), "--name=test",
		"--initial-cluster=test="+peer, "--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd, "--unsafe-no-fsync")
	plane := &controlPlane{url: fmt.Sprintf("https://127.0.0.1:%d", port), kubeconfig: file("kubeconfig"),
		certificate: file("certificates/apiserver.crt")}
	plane.command = []string{filepath.Join(assets, "kube-apiserver"), "--etcd-servers=" + etcd, "--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", port), "--cert-dir=" + file("certificates"),
		"--advertise-address=10.0.0.1", "--service-cluster-ip-range=10.0.0.0/24",
		"--token-auth-file=" + file("users.csv"), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file=" + file("key.pem"), "--service-account-key-file=" + file("public.pem"),
		// This plugin rejects Pods whose service account does not exist. No controller creates one here.
		"--disable-admission-plugins=ServiceAccount"}
	plane.startServer(t)
	t.Cleanup(plane.client.CloseIdleConnections)
	plane.writeKubeconfig(t)
	plane.createObjects(t)
	return plane
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func writeServiceAccountKeys(t *testing.T, private, public string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// Keys of this type always have these forms.
	privateDER, _ := x509.MarshalPKCS8PrivateKey(key)
	publicDER, _ := x509.MarshalPKIXPublicKey(&key.PublicKey)
	writeFile(t, private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateDER}))
	writeFile(t, public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER}))
}

// startServer starts the API server, always on the same port, and waits until it is ready.
func (p *controlPlane) startServer(t *testing.T) {
	t.Helper()
	p.server = startProcess(t, nil, p.command[0], p.command[1:]...)
	waitFor(t, "the API server is ready", startBound, func() bool {
		if p.client == nil {
			authority, err := os.ReadFile(p.certificate)
			roots := x509.NewCertPool()
			if err != nil || !roots.AppendCertsFromPEM(authority) {
				return false
			}
			p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
		}
		status, _, _ := p.request(t.Context(), http.MethodGet, "/readyz", "", nil)
		return status == http.StatusOK
	})
}

func (p *controlPlane) writeKubeconfig(t *testing.T) {
	t.Helper()
	config, _ := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []any{map[string]any{"name": "test", "cluster": map[string]any{
			"server": p.url, "certificate-authority": p.certificate}}},
		"users":    []any{map[string]any{"name": "test", "user": map[string]any{"token": adminToken}}},
		"contexts": []any{map[string]any{"name": "test", "context": map[string]any{"cluster": "test", "user": "test"}}},
	})
	writeFile(t, p.kubeconfig, config)
}

func (p *controlPlane) createObjects(t *testing.T) {
	t.Helper()
	definition, err := os.ReadFile("../../crds/boilerhouseclaims.yaml")
	if err != nil {
		t.Fatal(err)
	}
	path := "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	p.call(t, http.MethodPost, path, "application/yaml", definition)
	p.call(t, http.MethodPost, "/api/v1/namespaces", jsonType, []byte(`{"metadata":{"name":"`+namespace+`"}}`))
	p.waitClaims(t)
}

// waitClaims waits until the API server serves claims. It does so later than it is ready.
func (p *controlPlane) waitClaims(t *testing.T) {
	t.Helper()
	waitFor(t, "the API server serves claims", startBound, func() bool {
		status, _, _ := p.request(t.Context(), http.MethodGet, claimsPath, "", nil)
		return status == http.StatusOK
	})
}

const (
	jsonType  = "application/json"
	patchType = "application/merge-patch+json"
)

// request sends a request with all permissions.
func (p *controlPlane) request(ctx context.Context, method, path, kind string, body []byte) (int, []byte, error) {
	response, err := p.open(ctx, method, path, kind, body)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, text, err
}

func (p *controlPlane) open(ctx context.Context, method, path, kind string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, p.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+adminToken)
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	return p.client.Do(request)
}

// call returns the body of a response that is no error.
func (p *controlPlane) call(t *testing.T, method, path, kind string, body []byte) []byte {
	t.Helper()
	status, text, err := p.request(t.Context(), method, path, kind, body)
	if err != nil || status >= 300 {
		t.Fatalf("%s %s: status %d, %v: %.300s", method, path, status, err, text)
	}
	return text
}

// serve starts a bridge on this control plane and waits until it is ready. It returns its URL.
func (p *controlPlane) serve(t *testing.T, environment ...string) string {
	t.Helper()
	_, url := p.startBridge(t, environment...)
	return url
}

// startBridge is serve, and also returns the process.
func (p *controlPlane) startBridge(t *testing.T, environment ...string) (*process, string) {
	t.Helper()
	bridge := startProcess(t, environment, bridgeBinary(t), "serve", "--port", "0", "--kubeconfig", p.kubeconfig,
		"--namespace", namespace, "--heartbeat", "5")
	url := bridge.url(t)
	waitFor(t, "the bridge is ready", startBound, func() bool {
		response, err := http.Get(url + "/readyz")
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return bridge, url
}

// waitFor waits until a condition holds.
func waitFor(t *testing.T, what string, bound time.Duration, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(bound); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", bound, what)
		}
	}
}
