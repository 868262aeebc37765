{{- define "bridge.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The label app.kubernetes.io/name is fixed: the command line finds the Service by it. */}}
{{- define "bridge.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/name: boilerhouse-bridge
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* The Pod of `helm test` has another component, so that the Service does not select it. */}}
{{- define "bridge.selectorLabels" -}}
app.kubernetes.io/name: boilerhouse-bridge
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: bridge
{{- end -}}

{{- define "bridge.labels" -}}
{{ include "bridge.commonLabels" . }}
app.kubernetes.io/component: bridge
{{- end -}}

{{- define "bridge.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "bridge.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "bridge.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "bridge.watchNamespace" -}}
{{- .Values.watchNamespace | default .Release.Namespace -}}
{{- end -}}

{{/*
The name of the Role and the RoleBinding. In another namespace it contains that of the release, because another release of
the same name may watch the same namespace. The name of a namespace has no dot.
*/}}
{{- define "bridge.roleName" -}}
{{- $name := include "bridge.fullname" . -}}
{{- ternary $name (printf "%s.%s" .Release.Namespace $name) (eq (include "bridge.watchNamespace" .) .Release.Namespace) -}}
{{- end -}}

{{- define "bridge.secretName" -}}
{{- .Values.auth.existingSecret | default (include "bridge.fullname" .) -}}
{{- end -}}

{{/* The name of the Service as clients in the cluster must use it: the bridge rejects shorter names. */}}
{{- define "bridge.serviceHost" -}}
{{ include "bridge.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "bridge.scheme" -}}
{{- ternary "https" "http" (not (empty .Values.tls.existingSecret)) -}}
{{- end -}}

{{/*
The data of the Secret, as base64. An existing Secret keeps its values. The result is stored, because the Secret and the
checksum annotation must see the same random values.
*/}}
{{- define "bridge.secretData" -}}
{{- if not (hasKey .Values "_secretData") -}}
{{- $secret := (lookup "v1" "Secret" .Release.Namespace (include "bridge.secretName" .)).data | default dict -}}
{{- $found := pick $secret "api-key" "session-key" -}}
{{- /* An API key that is not used at the moment stays too. */ -}}
{{- $data := deepCopy $found -}}
{{- range $key := ternary (list "api-key" "session-key") (list "session-key") .Values.auth.apiKey -}}
{{- if not (get $data $key) -}}{{- $_ := set $data $key (randAlphaNum 48 | b64enc) -}}{{- end -}}
{{- end -}}
{{- $_ := set .Values "_secretData" (dict "found" $found "data" $data) -}}
{{- end -}}
{{- end -}}

{{/*
Changes when the Secret changes. Only 32 bits are shown, so that the annotation of a Pod cannot confirm a guessed key.
Without access to the cluster an existing Secret is unknown, and the checksum is constant.
*/}}
{{- define "bridge.secretChecksum" -}}
{{- include "bridge.secretData" . -}}
{{- $data := ternary .Values._secretData.found .Values._secretData.data (not (empty .Values.auth.existingSecret)) -}}
{{- $data | toJson | sha256sum | trunc 8 -}}
{{- end -}}

{{/* Complete host names, each once. The bridge accepts no wildcards. */}}
{{- define "bridge.allowedHosts" -}}
{{- $hosts := .Values.allowedHosts -}}
{{- if .Values.ingress.enabled -}}{{- $hosts = concat $hosts .Values.ingress.hosts -}}{{- end -}}
{{- if .Values.httpRoute.enabled -}}{{- $hosts = concat $hosts .Values.httpRoute.hostnames -}}{{- end -}}
{{- $complete := list -}}
{{- range $hosts -}}
{{- if not (hasPrefix "*" .) -}}{{- $complete = append $complete . -}}{{- end -}}
{{- end -}}
{{- if and $hosts (not $complete) -}}
{{- fail "allowedHosts: the bridge accepts complete host names only; list those below the wildcard in allowedHosts" -}}
{{- end -}}
{{- uniq $complete | toJson -}}
{{- end -}}

{{- define "bridge.config" -}}
{{- $config := dict
  "port" 3000
  "listen-host" .Values.listenHost
  "probe-listen" (printf "%s:9090" (ternary (printf "[%s]" .Values.listenHost) .Values.listenHost (contains ":" .Values.listenHost)))
  "namespace" (include "bridge.watchNamespace" .)
  "ws-auth" .Values.auth.ws
-}}
{{- $hosts := include "bridge.allowedHosts" . | fromJsonArray -}}
{{- if $hosts -}}{{- $_ := set $config "allowed-hosts" $hosts -}}{{- end -}}
{{- if .Values.corsOrigins -}}{{- $_ := set $config "cors-origin" .Values.corsOrigins -}}{{- end -}}
{{- if .Values.trustedProxies -}}{{- $_ := set $config "trusted-proxies" .Values.trustedProxies -}}{{- end -}}
{{- if .Values.auth.allowAnonymous -}}{{- $_ := set $config "allow-anonymous" true -}}{{- $_ := set $config "ws-auth" "open" -}}{{- end -}}
{{- if .Values.auth.keysSecret -}}{{- $_ := set $config "keys-file" "/etc/boilerhouse-bridge/keys/keys.yaml" -}}{{- end -}}
{{- if .Values.auth.tokenAudience -}}{{- $_ := set $config "token-audience" .Values.auth.tokenAudience -}}{{- end -}}
{{- if include "bridge.usesSecret" . -}}{{- $_ := set $config "session-key-file" "/etc/boilerhouse-bridge/secret/session-key" -}}{{- end -}}
{{- if .Values.tls.existingSecret -}}
{{- $_ := set $config "tls-cert" "/etc/boilerhouse-bridge/tls/tls.crt" -}}
{{- $_ := set $config "tls-key" "/etc/boilerhouse-bridge/tls/tls.key" -}}
{{- end -}}
{{- range $key, $value := .Values.config -}}
{{- /* Helm reads numbers from values files as floats. */ -}}
{{- $_ := set $config $key (ternary (int64 $value) $value (kindIs "float64" $value)) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* What `serve` reads: its variables and files. The container `doctor` of `helm test` has the same. */}}
{{- define "bridge.env" -}}
{{- if .Values.auth.apiKey }}
- name: BOILERHOUSE_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "bridge.secretName" . | quote }}
      key: api-key
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "bridge.volumeMounts" -}}
- name: config
  mountPath: /etc/boilerhouse-bridge/config
  readOnly: true
{{- if include "bridge.usesSecret" . }}
- name: secret
  mountPath: /etc/boilerhouse-bridge/secret
  readOnly: true
{{- end }}
{{- if .Values.auth.keysSecret }}
- name: keys
  mountPath: /etc/boilerhouse-bridge/keys
  readOnly: true
{{- end }}
{{- if .Values.tls.existingSecret }}
- name: tls
  mountPath: /etc/boilerhouse-bridge/tls
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "bridge.volumes" -}}
- name: config
  configMap:
    name: {{ include "bridge.fullname" . | quote }}
{{- if include "bridge.usesSecret" . }}
- name: secret
  secret:
    secretName: {{ include "bridge.secretName" . | quote }}
    defaultMode: 0440
    items:
      - key: session-key
        path: session-key
{{- end }}
{{- if .Values.auth.keysSecret }}
- name: keys
  secret:
    secretName: {{ .Values.auth.keysSecret | quote }}
    defaultMode: 0440
{{- end }}
{{- if .Values.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ .Values.tls.existingSecret | quote }}
    defaultMode: 0440
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The Secret has the API key and the session key. Sessions need a credential of any kind. */}}
{{- define "bridge.usesSecret" -}}
{{- if or .Values.auth.apiKey .Values.auth.keysSecret .Values.auth.tokenAudience -}}true{{- end -}}
{{- end -}}

{{- define "bridge.validate" -}}
{{- $auth := .Values.auth -}}
{{- if and (not (include "bridge.usesSecret" .)) (not $auth.allowAnonymous) -}}
{{- fail "auth: no credential is configured; set auth.apiKey, auth.keysSecret or auth.tokenAudience, or set auth.allowAnonymous to serve without one" -}}
{{- end -}}
{{- if and $auth.allowAnonymous (include "bridge.usesSecret" .) -}}
{{- fail "auth.allowAnonymous: a credential is configured too; set auth.apiKey=false, and remove auth.keysSecret and auth.tokenAudience" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts: at least one host name is needed, because the bridge accepts no unknown host names" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: name the Gateway, such as {name: public, namespace: gateways}" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.hostnames) -}}
{{- fail "httpRoute.hostnames: at least one host name is needed, because the bridge accepts no unknown host names" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas: it is larger than autoscaling.maxReplicas" -}}
{{- end -}}
{{- $monitor := .Values.monitoring.serviceMonitor -}}
{{- if and $monitor.enabled .Values.tls.existingSecret (not $monitor.tlsConfig) -}}
{{- fail "monitoring.serviceMonitor.tlsConfig: Prometheus scrapes the Pods by address, which the certificate does not name; set serverName and ca, or insecureSkipVerify" -}}
{{- end -}}
{{- if and .Values.auth.allowAnonymous (has "*" .Values.corsOrigins) -}}
{{- fail "corsOrigins: `*` needs a credential; remove auth.allowAnonymous or list the origins" -}}
{{- end -}}
{{- end -}}
