{{- define "fedlora.name" -}}
{{- $name := ternary .Release.Name (printf "%s-fedlora" .Release.Name) (contains "fedlora" .Release.Name) -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* What a site's client is called: dict "root" $ "site" NAME. */}}
{{- define "fedlora.client" -}}
{{- printf "%s-client-%s" (include "fedlora.name" .root) .site | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* Labels by which one component's pods are chosen: dict "root" $ "component" NAME. */}}
{{- define "fedlora.selector" -}}
app.kubernetes.io/name: fedlora
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "fedlora.labels" -}}
{{ include "fedlora.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* What every pod has: no token of the API, nobody special, a read-only root. */}}
{{- define "fedlora.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
# What is being trained or aggregated is ended in good order.
terminationGracePeriodSeconds: 90
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "fedlora.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "fedlora.dns" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}
