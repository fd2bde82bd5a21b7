{{- define "vpcproxy.name" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{- end -}}
-agent
{{- end -}}

{{- define "vpcproxy.selector" -}}
app.kubernetes.io/name: vpcproxy
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "vpcproxy.labels" -}}
{{ include "vpcproxy.selector" . }}
app.kubernetes.io/part-of: vpcproxy
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "vpcproxy.image" -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end -}}

{{- define "vpcproxy.metricsPort" -}}
{{ regexFind "[0-9]+$" (dig "metrics" "address" "" .Values.config) }}
{{- end -}}
